"""cl_runner: experiments in continual learning, from one command to CSV files.

Importing the package imports neither torch nor pandas: the command line answers at once.
"""

import os

from cl_runner import naming

__version__ = "0.1.0"

# Waiting threads sleep instead of spinning: on a busy machine, spinning is several times slower.
# The OpenMP library reads it when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

naming.register()
