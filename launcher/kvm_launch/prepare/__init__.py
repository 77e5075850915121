"""The preparations before QEMU starts: checks, images, helpers, persistent state."""
