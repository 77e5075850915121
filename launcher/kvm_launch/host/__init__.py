"""The share of the host that a VM holds: its lease, control groups and limits."""
