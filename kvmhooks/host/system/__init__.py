"""The kernel of a host and what it hands out: KVM, control groups, resctrl."""
