"""A domain XML that is there already, tuned to its host."""
