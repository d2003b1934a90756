"""One file for each kind of benchmark: from a data set to a Stream."""
