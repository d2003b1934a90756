"""From files and folders to a stream of tasks."""
