"""The processes of a VM: QEMU, its helpers, what they are given."""
