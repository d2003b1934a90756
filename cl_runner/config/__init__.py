"""What a user may ask for: the schema of a configuration, its checks, and which run it is."""
