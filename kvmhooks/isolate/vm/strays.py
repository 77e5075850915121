"""QEMU's other threads on the CPUs of its own vCPUs, and telling of it.

A live ``virsh emulatorpin`` or ``iothreadpin`` calls no hook, and libvirt does not ask whether a
vCPU is alone on its CPU. Kernels with partitions (6.12 in the lab) allow it as well.
"""

from __future__ import annotations

from kvmhooks.isolate.record.state import RUNNING
from kvmhooks.isolate.vm.cgroups import LIBVIRT, Groups
from kvmhooks.isolate.vm.qemu_threads import EMULATOR, IOTHREAD, threads_of
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System


def told(system: System, held: Held) -> list[str]:
    """Return a sentence for the emulator, and for each I/O thread, on the VM's own CPUs."""
    own = held.claim.exclusive
    if held.state != RUNNING or not own:
        return []
    found: dict[tuple[str, int], CpuSet] = {}
    for thread in threads_of(system, Groups.find(system, [held]), held.holder.pid):
        if thread.role in {EMULATOR, IOTHREAD}:
            try:
                both = system.affinity(thread.tid) & own
            except OSError:  # it ended
                continue
            if both:
                key = thread.role, thread.number
                found[key] = found.get(key, CpuSet()) | both
    return [_sentence(held, *key, cpus) for key, cpus in sorted(found.items())]


def _sentence(held: Held, role: str, number: int, cpus: CpuSet) -> str:
    name = held.claim.name
    who, command = "the emulator", f"virsh emulatorpin {name} CPUS --live"
    if role == IOTHREAD:
        who, command = f"I/O thread {number}", f"virsh iothreadpin {name} {number} CPUS --live"
    remedy = f": run `{command}`" if held.claim.driver == LIBVIRT else ""
    return f"{who} may run on {cpus.brief()}, which its vCPUs should have alone{remedy}"


class Aloud:
    """The warnings of one VM, each told to the log when it is new."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._told: set[str] = set()

    def tell(self, held: Held | None) -> None:
        """Log what is wrong with a VM by now and was not the last time."""
        if held is None:
            return
        found = [*held.warnings, *told(self._system, held)]
        for warning in found:
            if warning not in self._told:
                self._system.log(f"{held.claim.name}: {warning}", severity=4)
        self._told = set(found)
