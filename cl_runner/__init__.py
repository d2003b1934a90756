"""cl_runner: experiments in continual learning, from one command to CSV files.

Importing the package imports neither torch nor pandas: the command line answers at once.
"""

__version__ = "0.1.0"

from cl_runner import naming

naming.register()
