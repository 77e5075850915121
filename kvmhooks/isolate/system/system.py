"""The system: all that isolation reads and changes of a host goes through it.

Everything is below a root directory. With another root than ``/`` nothing outside of it is read
or changed, wherever its links lead, and no device is opened (``below``). A task's affinity is then
the line of its captured ``status`` file, so that the same code runs on a fake tree. A test may put
a model of the kernel's rules in the place of this class.
"""

from __future__ import annotations

import errno
import os
import time

from kvmhooks.isolate.system.host_files import MAX_READ, HostFiles
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.system.dbus import Systemd

_AFFINITY: Final = "Cpus_allowed_list:\t"


class System(HostFiles):
    """A host below ``root``: files, tasks, the system bus, the clock. Paths have no leading slash.

    Every method raises ``OSError`` with the kernel's own errno.
    """

    def __init__(self, root: str = "/") -> None:
        super().__init__(root)
        self.deadline: float | None = None
        """When, on the clock of ``now``, nothing more may be begun."""

    def kernel(self) -> tuple[int, int]:
        """Return the first two numbers of the kernel's release. Raises ``OSError``."""
        major, minor, *_ = (self.read("proc/sys/kernel/osrelease") + ".0.0").split(".")
        digits = "".join(digit for digit in minor if digit.isdecimal())
        return int(major), int(digits or 0)

    def block_device(self, device: str) -> str:
        """Return the kernel's name of a disk (``sdb``) from any of its paths, or empty."""
        try:
            path = self.at(device.lstrip("/"))
        except OSError:
            return ""
        name = (os.path.realpath(path) if self.is_real else path).rsplit("/", 1)[-1]
        return name if name and self.has(f"sys/class/block/{name}/queue") else ""

    def affinity(self, tid: int) -> CpuSet:
        """Return the CPUs on which a task may run (``sched_getaffinity(2)``)."""
        return CpuSet(os.sched_getaffinity(tid)) if self.is_real else self.mask(tid)

    def mask(self, tid: int) -> CpuSet:
        """Return the same with CPUs that are offline, which ``sched_getaffinity(2)`` leaves out.

        ``Cpus_allowed_list`` of proc_pid_status(5) has them (``task_cpus_allowed()``,
        kernel/cgroup/cpuset.c).
        """
        for line in self.read(f"proc/{tid}/status").split("\n"):
            if line.startswith(_AFFINITY):
                return CpuSet.parse(line.removeprefix(_AFFINITY))
        raise ProcessLookupError(errno.ESRCH, "no such task", str(tid))

    def set_affinity(self, tid: int, cpus: CpuSet) -> None:
        """Let a task run on ``cpus`` only (``sched_setaffinity(2)``)."""
        if self.is_real:
            os.sched_setaffinity(tid, cpus)
            return
        lines = self.read(f"proc/{tid}/status").split("\n")
        kept = [line for line in lines if not line.startswith(_AFFINITY)]
        self.write(f"proc/{tid}/status", "\n".join([*kept, f"{_AFFINITY}{cpus}"]))

    def scheduling(self, tid: int, what: str) -> str:
        """Return how a thread is scheduled: ``what`` and values as in ``scheduling.py``.

        In a tree a line of ``proc/TID/sched`` tells, or it is what untouched threads have.
        """
        from kvmhooks.isolate.system import scheduling  # noqa: PLC0415 -- few VMs ask for it

        if self.is_real:
            return scheduling.read(tid, what)
        self.read(f"proc/{tid}/stat")
        return self._schedule_of(tid).get(what, scheduling.DEFAULTS[what])

    def set_scheduling(self, tid: int, what: str, value: str) -> None:
        """Schedule a thread otherwise."""
        from kvmhooks.isolate.system import scheduling  # noqa: PLC0415 -- as above

        if self.is_real:
            scheduling.write(tid, what, value)
            return
        lines = self._schedule_of(tid) | {what: value}
        self.replace(f"proc/{tid}/sched", "".join(f"{k} {v}\n" for k, v in lines.items()))

    def _schedule_of(self, tid: int) -> dict[str, str]:
        try:
            lines = self.lines(f"proc/{tid}/sched")
        except FileNotFoundError:
            return {}
        return dict(line.split(" ", 1) for line in lines)

    def ask(self, path: str, text: str, timeout: float) -> str:
        """Send a text to a stream socket and return all that comes back until it closes."""
        import socket  # noqa: PLC0415 -- 3 ms that most calls do not need

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout)
            peer.connect(self.at(path))
            peer.sendall(text.encode())
            parts: list[bytes] = []
            while sum(map(len, parts)) < MAX_READ:
                part = peer.recv(65_536)
                if not part:
                    break
                parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def systemd(self, timeout: float = 5.0) -> Systemd | None:
        """Return systemd's manager over the system bus, or None where systemd does not run.

        ``sd_booted(3)`` tells the same way.
        """
        if not self.has("run/systemd/system"):
            return None
        try:
            path = self.at("run/dbus/system_bus_socket")
        except OSError:  # in a tree, the links go round in a circle
            return None
        from kvmhooks.isolate.system.dbus import Systemd  # noqa: PLC0415 -- many hosts need no bus

        return Systemd(path, timeout)

    def detach(self, words: list[str]) -> None:
        """Run a program that is nobody's child and has nothing of ours; it is not waited for."""
        from kvmhooks.isolate.system import processes  # noqa: PLC0415 -- few calls start anything

        processes.detach(words, lambda line: self.log(line, severity=4))

    def write_within(self, seconds: float, path: str, text: str) -> None:
        """Write a text from a child, which is waited for no longer than this.

        Raises ``OSError`` as ``write`` does, and ``StuckError`` where the kernel does not return.
        """
        from kvmhooks.isolate.system import processes  # noqa: PLC0415 -- as above

        processes.within(seconds, lambda: self.write(path, text))

    def ask_program(self, words: list[str], seconds: float) -> str:
        """Return a program's output within a time. Raises ``IsolationError`` with what is wrong."""
        from kvmhooks.isolate.system import processes  # noqa: PLC0415 -- as above

        return processes.output(words, seconds)

    def load(self, module: str, seconds: float) -> None:
        """Have the kernel load a module, if it can; the caller has to see whether it did."""
        if self.is_real:
            from kvmhooks.isolate.system import processes  # noqa: PLC0415 -- as above

            processes.run(["/sbin/modprobe", "--", module], seconds)

    def log(self, line: str, severity: int = 6) -> None:
        """Send a line to the system's log (``/dev/log``); where nobody listens it is lost."""
        if not self.has("dev/log"):
            return
        import socket  # noqa: PLC0415 -- as in ask

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            try:
                peer.connect(self.at("dev/log"))
                peer.send(
                    f"<{24 + severity}>kvmhooks[{os.getpid()}]: {line}".encode(
                        "utf-8", "backslashreplace"
                    )
                )
            except OSError:  # no log daemon is no reason to keep a VM from starting
                return

    def now(self) -> float:
        """Return seconds on a clock that only goes forward."""
        return time.monotonic()

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return self.deadline is not None and self.now() >= self.deadline

    def prolong(self, seconds: float) -> None:
        """Put the deadline off, so that at least this many seconds are left."""
        if self.deadline is not None:
            self.deadline = max(self.deadline, self.now() + seconds)

    def parent(self) -> int:
        """Return the process that runs us."""
        return os.getppid()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)
