"""A VM that runs: its control groups, its threads, where they run."""
