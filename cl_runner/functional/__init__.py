"""Plain mathematics on tensors: nothing here knows of runs, files or configurations."""
