"""The version of the package, in a file that imports nothing: every room may ask for it."""

__version__ = "0.1.0"
