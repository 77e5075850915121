"""A VM that runs, and whether one can: QMP, libvirt, threads, KVM itself."""
