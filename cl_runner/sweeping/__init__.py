"""Many runs: together in one process or in several, their folders, the merged results."""
