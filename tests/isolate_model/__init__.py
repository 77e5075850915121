"""A model of the kernel's rules for what isolation sets, in memory."""
