"""Where `cl-run` and `python -m cl_runner` begin."""

from __future__ import annotations

import atexit
import gc
import sys


def leave() -> None:
    """Before exit: nothing is left to collect, but Triton complains of what was not."""
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


def main() -> None:
    """Run `cli.app.main` without looking for garbage among what is imported.

    Nothing that an import makes is garbage; to look for it there took a third of the time to the
    first step, and again at exit. `machine.ram.begin_collecting` ends it.
    """
    gc.disable()
    atexit.register(leave)
    from cl_runner.cli import app

    app.main()


if __name__ == "__main__":
    main()
