"""The small devices of a guest: each has one file, which is loaded for a VM that has the device."""
