"""The command ``kvm-launch``: until it has loaded what it needs, Ctrl-C just ends it.

Python's own way is an exception, which while modules are loaded would be a traceback. Nor is
garbage collected: what is loaded stays. It is again once there is a plan (``kvm_launch.life.run``).
"""

from __future__ import annotations

import gc
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.disable()

from kvm_launch.commands.main import main  # noqa: E402 -- after the line above, that is the point

__all__ = ["main"]
