"""Several VMs, started by one command."""
