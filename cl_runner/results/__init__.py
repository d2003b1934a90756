"""The files of a run: names, columns, matrices, status; written whole and read back."""
