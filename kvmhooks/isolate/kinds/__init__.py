"""The kinds of what one VM at a time has of a host: what is asked for, and what is on record."""
