"""cl_runner: experiments in continual learning, from one command to CSV files.

From Python: `import cl_runner as cl`, then `cl.run("strategy=ewc", seed=0)`. What this module
offers is imported when it is asked for: neither torch nor pandas nor Hydra before that, so that the
command line answers at once.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cl_runner.results import naming
from cl_runner.version import __version__

if TYPE_CHECKING:
    from cl_runner.api.comparison import Comparison, compare
    from cl_runner.api.models import load_model
    from cl_runner.api.running import run
    from cl_runner.api.runs import Run, Runs, load_runs
    from cl_runner.api.sweeping import sweep
    from cl_runner.errors import Diverged, UserError

__all__ = [
    "Comparison",
    "Diverged",
    "Run",
    "Runs",
    "UserError",
    "__version__",
    "compare",
    "load_model",
    "load_runs",
    "run",
    "sweep",
]

# Waiting threads spin for a moment, then sleep. The OpenMP library's own choice, to spin long, is
# several times slower on a busy machine; to sleep at once is half as fast on an idle one. It reads
# this when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

naming.register()


if not TYPE_CHECKING:  # which knows the names above, and no others

    def __getattr__(name: str) -> Any:
        """What `__all__` names, imported the first time that it is asked for."""
        places = {
            **dict.fromkeys(("Comparison", "compare"), "api.comparison"),
            **dict.fromkeys(("Run", "Runs", "load_runs"), "api.runs"),
            **dict.fromkeys(("Diverged", "UserError"), "errors"),
            "load_model": "api.models",
            "run": "api.running",
            "sweep": "api.sweeping",
        }
        if name not in places:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{places[name]}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
