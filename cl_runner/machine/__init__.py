"""What the computer gives: signals, locks, files, console, memory, processors, arithmetic."""
