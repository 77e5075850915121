"""Names for supervisors of a92f6b5, late in their lives: such a process imports them only then."""
