"""libvirt: domains written, read, tuned, and run."""
