"""One run: from a configuration through its tasks to the files in its folder."""
