"""A domain XML that is there already, read into a spec."""
