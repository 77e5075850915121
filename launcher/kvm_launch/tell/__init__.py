"""The news of a VM: to a person, to systemd, to other processes."""
