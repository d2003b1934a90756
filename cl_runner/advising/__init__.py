"""Which strategy to take for a stream, by what was measured on others."""
