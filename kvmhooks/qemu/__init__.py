"""QEMU: its arguments, its monitor, its threads, what it can do."""
