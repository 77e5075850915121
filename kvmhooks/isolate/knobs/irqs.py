"""Every interrupt's affinity, and the one that new interrupts get.

``/proc/irq/N/smp_affinity_list`` and ``/proc/irq/default_smp_affinity`` are described in the
kernel's Documentation/core-api/irq/irq-affinity.rst, ``effective_affinity_list`` in
Documentation/filesystems/proc.rst. Managed interrupts (``irqd_affinity_is_managed()``) refuse a
write with EIO or EPERM, by version (``write_irq_affinity()``, kernel/irq/proc.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.knob import CpuListKnob, Knob
from kvmhooks.isolate.knobs import vectors
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View
    from kvmhooks.isolate.state import Record

_DEFAULT: Final = "irq/default"
_SETTING: Final = "isolation.irqs"


def knobs(door: Door, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """The default first, since the originals of new interrupts come from its record.

    An interrupt that no driver has requested is left alone: it comes nowhere, and its effective
    affinity would not be what it was. One that was made since has our default, and is not.
    """
    default = records.get(_DEFAULT)
    yield CpuListKnob(_DEFAULT, "proc/irq/default_smp_affinity", setting=_SETTING, is_mask=True)
    descriptors = door.inodes("sys/kernel/irq")
    numbers = sorted(int(name) for name in door.inodes("proc/irq") if name.isdigit())
    goals = vectors.goals(door, view, numbers)
    for number in numbers:
        record = records.get(f"irq/{number}")
        irq = Irq(number, view.exclusive, str(descriptors.get(str(number), "")), record)
        irq.goal = goals.get(number)
        if record is not None or _is_requested(door, number) or irq.carries(door, default):
            yield irq


def _is_requested(door: Door, number: int) -> bool:
    """Whether a driver handles it (ABI/testing/sysfs-kernel-irq, ``actions``)."""
    try:
        return door.read(f"sys/kernel/irq/{number}/actions") != ""
    except OSError:  # a kernel without CONFIG_SPARSE_IRQ does not tell
        return True


class Irq(CpuListKnob):
    """One interrupt."""

    __slots__ = ("descriptor", "exclusive", "goal", "number", "record")

    goal: CpuSet | None
    """Where it belongs as a vector of a VM's device; None for the host's own."""

    def __init__(
        self, number: int, exclusive: CpuSet, descriptor: str, record: Record | None
    ) -> None:
        super().__init__(f"irq/{number}", f"proc/irq/{number}/smp_affinity_list", setting=_SETTING)
        self.number = number
        self.exclusive = exclusive
        self.descriptor = descriptor
        self.record = record
        self.goal = None

    def target(self, original: str, view: View) -> str:
        return super().target(original, view) if self.goal is None else str(self.goal)

    def identity(self, door: Door) -> str:  # noqa: ARG002 -- the base's
        """The inode of ``/sys/kernel/irq/N``: chip, hwirq and mask live as long as it.

        It is made with the interrupt's descriptor (``irq_sysfs_add()``, kernel/irq/irqdesc.c), and
        kernfs counts its inodes up, so that a number that is used again has another one
        (``idr_alloc_cyclic()`` in ``__kernfs_new_node()``, fs/kernfs/dir.c). One listing tells all.
        """
        return self.descriptor

    def first_original(self, current: str, records: dict[str, Record]) -> str:
        """A new interrupt got the default's mask: what the default was is what it would be."""
        default = records.get(_DEFAULT)
        if default is not None and default.made(current):
            return default.original
        return current

    def carries(self, door: Door, default: Record | None) -> bool:
        """Whether it has the mask that we gave the default."""
        try:
            return default is not None and default.made(self.read(door))
        except (OSError, ValueFormatError):
            return False

    def note(self, door: Door) -> str:
        """The CPU that takes it, which the kernel has chosen from the mask."""
        try:
            return door.read(f"proc/irq/{self.number}/effective_affinity_list")
        except OSError:
            return ""

    def steps(self, current: str, target: str) -> list[tuple[int, str]]:
        """At the end first to the CPU that took it: the kernel stays there if the mask allows."""
        steps = super().steps(current, target)
        record = self.record
        if steps and record is not None and record.original == target:
            try:
                home = CpuSet.parse(record.note)
            except ValueFormatError:
                home = CpuSet()
            if home and home < CpuSet.parse(target):
                return [(self.order, str(home)), *steps]
        return steps

    def remark(self, door: Door, value: str) -> str:  # noqa: ARG002 -- the base's
        """IO-APIC changes wait for the next interrupt; until then the old CPU is the effective."""
        try:
            effective = CpuSet.parse(door.read(f"proc/irq/{self.number}/effective_affinity_list"))
        except (OSError, ValueFormatError):
            return ""
        if effective.isdisjoint(self.exclusive if self.goal is None else effective - self.goal):
            return ""
        return f"pending until its next interrupt: still on {effective}"
