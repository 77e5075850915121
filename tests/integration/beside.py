"""kvm-launch with a real QEMU beside a host that is a tree of files: nothing real is isolated.

Run as ``python -m tests.integration.beside ROOT ARGUMENT…``: kvm-launch itself, but what it reads
and changes of the host through ``kvmhooks.isolate`` is below ``ROOT``. Only whether a process lives
is asked of this machine.
"""

from __future__ import annotations

import sys

from kvm_launch.main import main
from kvmhooks.isolate.door import Door


class Beside(Door):
    """A tree of files in which the processes of this machine live."""

    def read(self, path: str) -> str:
        parts = path.split("/")
        if parts[0] == "proc" and parts[1].isdigit() and parts[2] == "stat":
            return Door("/").read(path)
        return super().read(path)

    def detach(self, words: list[str]) -> None:
        """No follower: another process would find nobody alive in the tree."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], Beside(sys.argv[1])))
