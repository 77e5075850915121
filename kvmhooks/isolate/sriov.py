"""A name for supervisors of a92f6b5, late in their lives: pools of virtual functions.

Such a supervisor runs on while this version takes its package's place. It has loaded what it took
itself, so one that comes here has taken none, and what is another VM's stays on record.
"""

from __future__ import annotations


def settle(*_: object) -> None:
    """Leave what is on record as it is."""
