"""What several strategies share: penalties, replay buffers, passes over a task, features."""
