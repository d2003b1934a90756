"""Mathematics: tensors in, tensors out. Nothing here knows of runs, files or configurations."""
