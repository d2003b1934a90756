"""cl_runner: experiments in continual learning, from one command to CSV files.

Importing the package imports neither torch nor pandas: the command line answers at once.
"""

import os

from cl_runner.results import naming

__version__ = "0.1.0"

# Waiting threads spin for a moment, then sleep. The OpenMP library's own choice, to spin long, is
# several times slower on a busy machine; to sleep at once is half as fast on an idle one. It reads
# this when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

naming.register()
