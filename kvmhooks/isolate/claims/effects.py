"""The settings of a VM that do nothing for want of another thing: a row for each that can be.

Nobody is kept from starting a VM by such a word; whoever said it is told. A setting that is not
here does something in every VM (``tests/laws/test_settings.py`` holds the table to both).
"""

from __future__ import annotations

from kvmhooks.errors import SHOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Final


class VmFacts:
    """The facts of a VM that its settings depend on."""

    __slots__ = (
        *("has_bound", "has_devices", "has_disks", "has_hugepages", "is_pinned", "settings"),
    )

    def __init__(
        self,
        settings: Mapping[str, str],
        *,
        has_bound: bool = True,
        has_devices: bool = True,
        has_disks: bool = True,
        has_hugepages: bool = True,
        is_pinned: bool = True,
    ) -> None:
        self.settings = settings
        """All that is asked for, by whomever, but for what is the default."""
        self.has_bound = has_bound
        """It has devices that libvirt leaves to others to bind."""
        self.has_devices = has_devices
        """It has PCI devices of the host."""
        self.has_disks = has_disks
        """It has block devices of the host."""
        self.has_hugepages = has_hugepages
        self.is_pinned = is_pinned
        """A vCPU of it is pinned to one CPU."""

    def says(self, name: str, value: str) -> bool:
        """Return whether a setting has a value."""
        return self.settings.get(name) == value


class Need:
    """A condition without which settings do nothing."""

    __slots__ = ("is_met", "lack")

    def __init__(self, lack: str, is_met: Callable[[VmFacts], bool]) -> None:
        self.lack = lack
        """The reason for a person, where it is not met."""
        self.is_met = is_met


def _is_exclusive(vm: VmFacts) -> bool:
    return vm.says("isolation.exclusive", "yes")


def _may_fail(vm: VmFacts) -> bool:
    """Return whether anything is set for the VM that the host could refuse."""
    set_alone = ("power.boost", "memory.", "kernel.", "storage.", "threads.")
    return _is_exclusive(vm) or any(
        name.startswith(set_alone) and name != "memory.hugepages" and not lacks(name, vm)
        for name in vm.settings
    )


_CPUS: Final = Need("the VM has no CPUs of its own (isolation.exclusive)", _is_exclusive)
_DISK: Final = Need("the VM has no disk of type block", lambda vm: vm.has_disks)

NEEDS: Final[Mapping[str, tuple[Need, ...]]] = {
    "isolation.strict": (Need("nothing that the VM asks for could be refused", _may_fail),),
    "isolation.siblings": (
        Need(
            "no CPU is a vCPU's own (isolation.exclusive, or a pin to one CPU)",
            lambda vm: vm.is_pinned or _is_exclusive(vm),
        ),
    ),
    "isolation.irqs": (_CPUS,),
    "isolation.tasks": (_CPUS,),
    "isolation.workqueues": (_CPUS,),
    "isolation.network": (_CPUS,),
    "isolation.vfio": (_CPUS, Need("the VM has no PCI device", lambda vm: vm.has_devices)),
    "isolation.watchdog": (_CPUS,),
    "power.governor": (_CPUS,),
    "power.epp": (
        _CPUS,
        Need(
            "the governor performance has its own preference",
            lambda vm: (
                not vm.says("power.governor", "performance") or vm.says("power.epp", "performance")
            ),
        ),
    ),
    "power.latency": (_CPUS,),
    "memory.hugepages": (Need("the VM has no huge pages", lambda vm: vm.has_hugepages),),
    "storage.scheduler": (_DISK,),
    "storage.requests": (_DISK,),
    "devices.managed": (
        Need(
            "the VM has no device that libvirt leaves to others (managed='no')",
            lambda vm: vm.has_bound,
        ),
    ),
    "devices.allow": (
        Need(
            "none of the VM's devices is bound for it (devices.managed, and managed='no')",
            lambda vm: vm.has_bound and vm.says("devices.managed", "yes"),
        ),
    ),
    "threads.vhost": (_CPUS,),
}
"""The conditions of each setting, all of which have to be met."""


def lacks(name: str, vm: VmFacts) -> str:
    """Return why a setting does nothing; empty where it does something."""
    return next((need.lack for need in NEEDS.get(name, ()) if not need.is_met(vm)), "")


def without_effect(asked: Mapping[str, str], vm: VmFacts) -> Iterator[str]:
    """Yield a sentence for each setting that somebody said of this VM and that does nothing."""
    for name, value in sorted(asked.items()):
        if why := lacks(name, vm):
            yield f"{name}: {value[:SHOWN]!r} does nothing: {why}"
