"""The conversations of a running VM: console, control, QEMU, the guest's agent."""
