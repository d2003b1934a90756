"""What several strategies need of a run: passes over a task, buffers, features."""
