"""kvm-launch: a VM from ``vm.toml``, without libvirt or through it."""
