"""The state of this host: programs that run VMs, and what VMs hold."""
