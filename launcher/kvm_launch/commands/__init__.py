"""The command line of kvm-launch, and its verbs."""
