"""The host itself: its files, processes, threads and D-Bus."""
