"""kvm-launch with a real QEMU beside a host that is a tree of files: nothing real is isolated.

Run as ``python -m tests.integration.beside ROOT ARGUMENT…``: kvm-launch itself, but what it reads
and changes of the host through ``kvmhooks.isolate`` is below ``ROOT``. This machine is asked only
whether a process lives that is no kernel thread.
"""

from __future__ import annotations

import sys

from kvm_launch.commands.main import main
from kvmhooks.isolate.system.process_stat import FLAGS, fields_of
from kvmhooks.isolate.system.system import System

KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD (include/linux/sched.h): those of the tree are none of this machine's."""


class Beside(System):
    """A tree of files in which the processes of this machine live."""

    def read(self, path: str) -> str:
        parts = path.split("/")
        is_stat = parts[0] == "proc" and parts[1].isdigit() and parts[2] == "stat"
        text = super().read(path) if self.has(path) or not is_stat else ""
        if is_stat and not (text and int(fields_of(text)[FLAGS]) & KERNEL_THREAD):
            return System("/").read(path)
        return text

    def detach(self, words: list[str]) -> None:
        """No follower: another process would find nobody alive in the tree."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], Beside(sys.argv[1])))
