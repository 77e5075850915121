"""The errors of the lab.

LabError                 the lab itself failed: a build, a boot, a lost connection
├── CommandError         a command in the lab exited with something else than 0
└── LabTimeoutError      something took longer than its bound
"""

from __future__ import annotations


class LabError(Exception):
    """The lab could not do what was asked."""


class CommandError(LabError):
    """A command that had to work did not."""


class LabTimeoutError(LabError):
    """A bounded wait came to its end."""
