"""Every interrupt's affinity, and the one that new interrupts get.

``/proc/irq/N/smp_affinity_list`` and ``/proc/irq/default_smp_affinity`` are described in the
kernel's Documentation/core-api/irq/irq-affinity.rst, ``effective_affinity_list`` in
Documentation/filesystems/proc.rst. Managed interrupts (``irqd_affinity_is_managed()``) refuse a
write with EIO or EPERM, by version (``write_irq_affinity()``, kernel/irq/proc.c).
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.engine.knob import ORDINARY, CpuListKnob, Knob, parsed
from kvmhooks.isolate.knobs import vfio_irqs
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System

_DEFAULT: Final = "irq/default"
_SETTING: Final = "isolation.irqs"


def knobs(system: System, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the default first, since the originals of new interrupts come from its record.

    An interrupt that no driver has requested is left alone: it comes nowhere, and its effective
    affinity would not be what it was. One that was made since has our default, and is not.
    """
    default = records.get(_DEFAULT)
    yield _Default()
    descriptors = system.inodes("sys/kernel/irq") or dict.fromkeys(system.names("proc/irq"), 0)
    numbers = sorted([int(name) for name in descriptors if name.isdecimal()])
    fresh = [str(number) for number in numbers if f"irq/{number}" not in records]
    handled = system.crowded("proc/irq", fresh)
    goals, near = vfio_irqs.places(system, view, descriptors)
    for number in numbers:
        name = str(number)
        record = records.get(f"irq/{name}")
        irq = IrqKnob(name, view.exclusive, str(descriptors[name]), record)
        irq.goal, irq.near = goals.get(name), near.get(name)
        is_known = record is not None or name in handled
        if is_known or _is_requested(system, name) or irq.carries(system, default):
            yield irq


def _is_requested(system: System, name: str) -> bool:
    """Return whether a driver handles it (ABI/testing/sysfs-kernel-irq, ``actions``).

    Most handlers have a directory each in ``/proc/irq/N`` (``register_handler_proc()``,
    kernel/irq/proc.c), so that this is asked of few.
    """
    try:
        return system.read(f"sys/kernel/irq/{name}/actions") != ""
    except OSError:  # a kernel without CONFIG_SPARSE_IRQ does not tell
        return True


class _Default(CpuListKnob):
    """The mask that a new interrupt gets."""

    __slots__ = ()

    def __init__(self) -> None:
        path = "proc/irq/default_smp_affinity"
        super().__init__(_DEFAULT, path, setting=_SETTING, is_mask=True)

    def note(self, system: System) -> str:
        """Return the last of the descriptors that were made before: see ``Irq.identity``."""
        return str(max(system.inodes("sys/kernel/irq").values(), default=0))


class IrqKnob(CpuListKnob):
    """One interrupt."""

    __slots__ = ("descriptor", "exclusive", "goal", "near", "number", "record")

    goal: CpuSet | None
    """The CPUs for it as a vector of a VM's device; None for the host's own."""
    near: CpuSet | None
    """CPUs that it should rather have, of those that it may; None for all."""

    def __init__(
        self, number: str, exclusive: CpuSet, descriptor: str, record: Record | None
    ) -> None:
        # Not by way of the base's: a host has thousands of them.
        self.key = f"irq/{number}"
        self.path = f"proc/{self.key}/smp_affinity_list"
        self.order = ORDINARY
        self.setting = _SETTING
        self.is_mask = False
        self.number = number
        self.exclusive = exclusive
        self.descriptor = descriptor
        self.record = record
        self.goal = None
        self.near = None

    def target(self, original: str, view: View) -> str:
        if self.goal is not None:
            return str(self.goal)
        wide = super().target(original, view)
        rather = CpuSet() if self.near is None else _cpus(wide) & self.near
        return str(rather or wide)

    def askers(self, original: str, view: View, system: System) -> list[Held]:
        """Return whose CPUs are left out, or whose device it is, or is near to."""
        if self.goal is not None:
            return view.owners(self.goal)
        found = super().askers(original, view, system)
        if self.near is not None and self.target(original, view) != super().target(original, view):
            near = vfio_irqs.having(system, view, self.number)
            found += [vm for vm in near if vm not in found]
        return found

    def identity(self, system: System) -> str:  # noqa: ARG002 -- the base's
        """Return the inode of ``/sys/kernel/irq/N``: chip, hwirq and mask live as long as it.

        It is made with the interrupt's descriptor (``irq_sysfs_add()``, kernel/irq/irqdesc.c), and
        kernfs counts its inodes up, so that a number that is used again has another one
        (``idr_alloc_cyclic()`` in ``__kernfs_new_node()``, fs/kernfs/dir.c). One listing tells all.
        """
        return self.descriptor

    def first_original(self, current: str, records: dict[str, Record]) -> str:
        """Return the default's original if a new interrupt got the default's mask, else its own."""
        default = records.get(_DEFAULT)
        if default is not None and self._is_newer(default) and default.made(current):
            return default.original
        return current

    def carries(self, system: System, default: Record | None) -> bool:
        """Return whether it has the mask that we gave the default."""
        try:
            return (
                default is not None and self._is_newer(default) and default.made(self.read(system))
            )
        except (OSError, ValueFormatError):
            return False

    def _is_newer(self, default: Record) -> bool:
        """Return whether it was made after the default first changed: others may have this mask."""
        return int(self.descriptor) > int(default.note or 0)

    def note(self, system: System) -> str:
        """Return the CPU that takes it, which the kernel has chosen from the mask."""
        try:
            return system.read(f"proc/irq/{self.number}/effective_affinity_list")
        except OSError:
            return ""

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """Return the writes, first back to the CPU that took it: the kernel leaves it where it is.

        A vector is not moved while its CPU is in the new mask (``assign_vector_locked()``,
        arch/x86/kernel/apic/vector.c), so that the mask alone would not bring it home. It goes
        back as soon as it may.
        """
        if self.record is None:
            return [(self.order, target)]
        home = _cpus(self.record.note)
        is_away = home and home.isdisjoint(_cpus(current)) and home < _cpus(target)
        return [*([(self.order, str(home))] if is_away else []), (self.order, target)]

    def remark(self, system: System, record: Record) -> str:
        """Tell of a change pending until the next interrupt (IO-APIC): the old CPU is effective.

        It may be a VM's if its CPU was when it was first moved, or if it was moved again.
        """
        if self.record is None and _cpus(record.note).isdisjoint(self.exclusive):
            return ""
        try:
            effective = _cpus(system.read(f"proc/irq/{self.number}/effective_affinity_list"))
        except OSError:
            return ""
        if effective.isdisjoint(self.exclusive if self.goal is None else effective - self.goal):
            return ""
        return f"pending until its next interrupt: still on {effective}"


def _cpus(text: str) -> CpuSet:
    """Parse a list of CPUs; a text that is none holds none."""
    try:
        return parsed(text)
    except ValueFormatError:
        return CpuSet()
