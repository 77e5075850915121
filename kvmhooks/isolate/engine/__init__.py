"""The host's settings, brought to what all claims together ask for."""
