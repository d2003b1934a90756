"""`python -m cl_runner.comparing` is the command `cl-compare`."""

from cl_runner.comparing.cli import main

if __name__ == "__main__":
    main()
