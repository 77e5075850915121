"""The hook that libvirt runs: from the first look at a call to its installation.

``python3 -m kvmhooks.isolate.hook``, ``main`` and ``command`` of this package are contracts: what
is installed, and followers that run, have them by these names.
"""

from kvmhooks.isolate.hook.entry import command, main

__all__ = ["command", "main"]
