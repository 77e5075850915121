"""The life of one VM: planned, started, supervised, stopped, migrated."""
