"""The CPUs of a host: topology, caches, nodes, frequencies."""
