"""irqbalance: told over its socket which CPUs to leave alone.

The daemon listens on ``/run/irqbalance/irqbalancePID.sock`` and takes one request a connection
(``sock_handle()``, irqbalance.c, and ``setup_banned_cpus()``, cputree.c, of irqbalance 1.9):
``setup`` answers with its interval, the banned interrupts (``IRQ N``) and the hex mask of banned
CPUs; ``settings cpus LIST`` bans CPUs (``NULL``: none of ours) and ``settings ban irqs N N``
interrupts (``NONE``), which it takes up at its next scan. Where it does not run, there is nothing
to tell. A ban is merged with what others have banned, and a restart forgets it: the next
transaction bans again.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.knob import FIRST, Knob
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System

_DIRECTORY: Final = "run/irqbalance"
_TIMEOUT: Final = 2.0

_MAX_REQUEST: Final = 499
"""The daemon reads a request into 500 bytes."""

_DEVICES: Final = "sys/bus/pci/devices"


def knobs(system: System, view: View) -> Iterator[Knob]:
    """Yield two knobs for a daemon that runs: its banned CPUs, and interrupts."""
    for name in system.names(_DIRECTORY):
        pid = name.removeprefix("irqbalance").removesuffix(".sock")
        is_its = pid.isascii() and pid.isdecimal() and name == f"irqbalance{pid}.sock"
        if is_its and system.is_socket(f"{_DIRECTORY}/{name}"):
            yield _Bans(f"{_DIRECTORY}/{name}")
            yield _BannedIrqs(f"{_DIRECTORY}/{name}", passed_through(system, view))


def passed_through(system: System, view: View) -> CpuSet:
    """Return the interrupts of VMs' devices (ABI/testing/sysfs-bus-pci, ``msi_irqs``).

    They are where the VM's vCPUs are, and the daemon would move them away.
    """
    return union(_irqs_of(system, vm) for vm in view.held)


def _irqs_of(system: System, vm: Held) -> CpuSet:
    """Return the interrupts of one VM's devices."""
    given = vm.claim.devices if vm.claim.setting("isolation.irqs") == "yes" else ()
    irqs = (irq for device in given for irq in system.names(f"{_DEVICES}/{device}/msi_irqs"))
    return CpuSet(int(irq) for irq in irqs if irq.isdecimal())


class _Bans(Knob):
    """The banned CPUs."""

    __slots__ = ("path",)

    is_slow = True

    def __init__(self, path: str) -> None:
        super().__init__("irqbalance", FIRST)
        self.path = path

    @property
    def place(self) -> str:
        return f"the CPUs that irqbalance leaves alone (/{self.path})"

    def identity(self, system: System) -> str:  # noqa: ARG002 -- the base's
        """Return the daemon's socket, which has its pid: a restarted one has forgotten our bans."""
        return self.path

    def read(self, system: System) -> str:
        answer = system.ask(self.path, "setup", _TIMEOUT)
        words = answer.partition("BANNED ")[2].split()
        if not words:
            raise ValueFormatError(answer[:80], "irqbalance's BANNED mask")
        return str(CpuSet.parse_mask(words[0]))

    def write(self, system: System, value: str) -> None:
        _tell(system, self.path, f"settings cpus {value or 'NULL'}")

    def target(self, original: str, view: View) -> str:
        return str(CpuSet.parse(original) | view.taken("isolation.irqs"))

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        return view.owners(view.exclusive - CpuSet.parse(original), "isolation.irqs")


class _BannedIrqs(Knob):
    """The banned interrupts; their numbers are written like a CPU list."""

    __slots__ = ("irqs", "path")

    is_slow = True

    def __init__(self, path: str, irqs: CpuSet) -> None:
        super().__init__("irqbalance/irqs", FIRST)
        self.path = path
        self.irqs = irqs

    @property
    def place(self) -> str:
        return f"the interrupts that irqbalance leaves alone (/{self.path})"

    def identity(self, system: System) -> str:  # noqa: ARG002 -- the base's
        """Return the socket, as for the CPUs."""
        return self.path

    def read(self, system: System) -> str:
        words = system.ask(self.path, "setup", _TIMEOUT).split()
        return str(CpuSet(int(words[at + 1]) for at, word in enumerate(words) if word == "IRQ"))

    def write(self, system: System, value: str) -> None:
        irqs = " ".join(map(str, CpuSet.parse(value))) or "NONE"
        _tell(system, self.path, f"settings ban irqs {irqs}")

    def target(self, original: str, view: View) -> str:  # noqa: ARG002 -- the base's
        return str(CpuSet.parse(original) | self.irqs)

    def askers(self, original: str, view: View, system: System) -> list[Held]:
        fresh = self.irqs - CpuSet.parse(original)
        return [vm for vm in view.held if not fresh.isdisjoint(_irqs_of(system, vm))]


def _tell(system: System, path: str, request: str) -> None:
    if len(request) > _MAX_REQUEST:
        raise ValueFormatError(request[:80], f"at most {_MAX_REQUEST} bytes for irqbalance")
    system.ask(path, request, _TIMEOUT)
