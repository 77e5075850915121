"""The search for CPUs and nodes: what there is, what it costs, what is best."""
