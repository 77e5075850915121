"""Plans and hosts as text, maps and drawings for people."""
