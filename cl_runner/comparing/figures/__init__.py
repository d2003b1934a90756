"""The figures of a comparison, by subject; `compare.pictures` says which there are."""
