"""The places of the host's tasks: control groups with CPU sets, and those of VMs among them.

cgroup v2: Documentation/admin-guide/cgroup-v2.rst («Cpuset»); v1:
Documentation/admin-guide/cgroup-v1/cpusets.rst. libvirt's layout below the VM's scope is
``libvirt/{emulator,vcpuN,iothreadN}`` on v2 and without ``libvirt/`` on v1
(https://libvirt.org/cgroups.html).
"""

from __future__ import annotations

import errno

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System

UNIFIED: Final = "sys/fs/cgroup"
LEGACY: Final = "sys/fs/cgroup/cpuset"

LIMITING: Final = ("cpu", "memory", "blkio")
"""Controllers that have hierarchies of their own on v1, beside that of the CPU sets."""

LAUNCHED: Final = "kvm-launch-"
"""The beginning of the names of groups of VMs under kvm-launch."""

LIBVIRT: Final = "qemu"
"""The driver of claims of VMs under ``qemu:///system``."""

PARTITIONS_SINCE: Final = (6, 7)
"""The first kernel with ``cpuset.cpus.exclusive`` and remote partitions."""

MACHINES: Final = ("machine.slice", "machine")
"""The groups in which libvirt puts VMs, with machined and without."""


class Groups:
    """The groups of one host as they are now."""

    __slots__ = ("base", "effective_file", "is_unified", "scopes", "theirs")

    def __init__(
        self, *, base: str, is_unified: bool, scopes: dict[str, Held] | None = None
    ) -> None:
        self.base = base
        """The hierarchy that has the CPU sets, below the root; empty where there is none."""
        self.is_unified = is_unified
        self.effective_file = "cpuset.cpus.effective" if is_unified else "cpuset.effective_cpus"
        self.scopes = {} if scopes is None else scopes
        """The claims' own VMs by their group (``machine.slice/machine-….scope``)."""
        self.theirs: set[str] = set()
        """The groups that are left to another manager."""

    @classmethod
    def find(cls, system: System, held: Iterable[Held]) -> Groups:
        """Return the hierarchy with the CPU sets, and the groups of those that hold claims."""
        if system.has(f"{LEGACY}/cpuset.cpus"):
            found = cls(base=LEGACY, is_unified=False)
        elif system.has(f"{UNIFIED}/cgroup.controllers"):
            has_cpuset = "cpuset" in system.read(f"{UNIFIED}/cgroup.controllers").split()
            found = cls(base=UNIFIED if has_cpuset else "", is_unified=True)
        else:
            found = cls(base="", is_unified=False)
        for vm in held:
            pid = pid_of(system, vm)
            path = found.of_process(system, pid) if pid else None
            if path is not None:
                scope = scope_of(path)
                if scope:
                    found.scopes[scope] = vm
        return found

    def of_process(self, system: System, pid: int) -> str | None:
        """Return a process's group, without a leading slash; None when it is gone."""
        try:
            lines = system.lines(f"proc/{pid}/cgroup")
        except OSError:
            return None
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if controllers == "" if self.is_unified else "cpuset" in controllers.split(","):
                return path.strip("/")
        return None

    def ancestors(self) -> set[str]:
        """Return the groups that have a VM below them."""
        above = set(MACHINES)
        for scope in self.scopes:
            parts = scope.split("/")
            above.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return above

    def effective(self, system: System, path: str) -> CpuSet | None:
        """Return the CPUs of a group's tasks: its own effective set, or that of the next above."""
        while True:
            try:
                text = system.read(f"{self.base}/{path}/{self.effective_file}".replace("//", "/"))
                return CpuSet.parse(text)
            except (OSError, ValueFormatError):
                if not path:
                    return None
                path = path.rpartition("/")[0]

    def is_machine(self, path: str) -> bool:
        """Return whether a group is a VM's or a container's, whose manager pins its tasks."""
        return path.split("/", 1)[0] in MACHINES or any(
            path == scope or path.startswith(f"{scope}/") for scope in self.scopes
        )

    def is_theirs(self, path: str) -> bool:
        """Return whether a group, or one above it, is left to another manager."""
        return any(path == group or path.startswith(f"{group}/") for group in self.theirs)


def scope_of(path: str) -> str:
    """Return the VM's own group, from that of one of its threads."""
    above, _, last = path.rpartition("/")
    if last == "emulator" or (last.rstrip("0123456789") in {"vcpu", "iothread"}):
        path = above
    return path.removesuffix("/libvirt")


def launched_group(name: str) -> str:
    """Return the group of a VM of kvm-launch where systemd makes none for it."""
    return f"{MACHINES[1]}/{LAUNCHED}{name}"


def limiting(system: System) -> list[str]:
    """Return the hierarchies of v1 in which VMs of kvm-launch are, beside that of the CPU sets.

    None on v2, where a group of such a name has no ``tasks``.
    """
    bases = [f"{UNIFIED}/{controller}" for controller in LIMITING]
    return [base for base in bases if system.has(f"{base}/tasks")]


def sweep(system: System) -> None:
    """Remove what VMs of kvm-launch whose supervisor was killed have left: groups without a task.

    Those below systemd are gone with their last task. Raises ``OSError``.
    """
    found = Groups.find(system, ())
    if not found.base:
        return
    for base in (found.base, *limiting(system)):
        above = f"{base}/{MACHINES[1]}"
        if not system.has(f"{above}/cgroup.procs"):
            continue
        for name in system.directories(above):
            if name.startswith(LAUNCHED):
                remove_groups(system, f"{above}/{name}")
        _remove_free(system, above)


def remove_groups(system: System, path: str) -> None:
    """Remove a group with all below it, the lowest first; a group with a task in it stays.

    Raises ``OSError``.
    """
    for name in system.directories(path):
        remove_groups(system, f"{path}/{name}")
    _remove_free(system, path)


def _remove_free(system: System, path: str) -> None:
    """Remove a group without tasks and groups below it (EBUSY, ``cgroup_destroy_locked()``)."""
    try:
        system.remove_empty(path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def pid_of(system: System, held: Held) -> int:
    """Return QEMU's pid: on record while it runs, else from the file that it writes; or 0.

    The file is there before libvirt makes the VM's group (``qemuProcessLaunch()``), so that a
    group of a VM that is just being started is never taken for somebody else's.
    """
    if held.state == RUNNING:
        return held.holder.pid
    return libvirt_pid(system, held.claim)


def libvirt_pid(system: System, claim: Claim) -> int:
    """Return the pid in ``/run/libvirt/qemu/NAME.pid``, or 0; also for a VM that is another's."""
    path = libvirts_file(claim, ".pid")
    if claim.driver != LIBVIRT or not path:
        return 0
    try:
        text = system.read(path)
    except OSError:
        return 0
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0


def libvirts_file(claim: Claim, suffix: str) -> str:
    """Return the path of libvirt's file about a running VM; empty for a name that is no file's."""
    name = claim.name
    if not 0 < len(name) <= 200 or "/" in name or "\0" in name:
        return ""
    return f"run/libvirt/qemu/{name}{suffix}"
