"""`python -m cl_runner.compare` is the command `cl-compare`."""

from cl_runner.compare.cli import main

if __name__ == "__main__":
    main()
