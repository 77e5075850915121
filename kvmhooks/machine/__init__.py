"""The guest's hardware, as far as it must be decided."""
