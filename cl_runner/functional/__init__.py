"""Mathematics, tensors in and tensors out, which knows of no run, file or configuration."""
