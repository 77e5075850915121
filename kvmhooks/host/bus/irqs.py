"""The interrupts of a host.

Their kind is in ``/sys/kernel/irq`` (Documentation/ABI/testing/sysfs-kernel-irq), their target in
``/proc/irq`` (Documentation/core-api/irq/irq-affinity.rst), their number in ``/proc/interrupts``
(Documentation/filesystems/proc.rst). Since Linux 6.2 the chip of a message is named after its
device (``PCI-MSIX-0000:00:05.0``); before, only the device knows.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.host.bus.devices import Irq
from kvmhooks.host.bus.managed_irqs import is_likely_managed
from kvmhooks.host.bus.pci import PCI
from kvmhooks.host.files.addresses import ADDRESS, parse_last
from kvmhooks.values import MAX_CPU, CpuSet, PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_DESCRIBED: Final = "sys/kernel/irq"
_ROUTED: Final = "proc/irq"
_DEBUGGED: Final = "sys/kernel/debug/irq/irqs"
_COUNTED: Final = "proc/interrupts"

_NUMBER: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
_COLUMN: Final = re.compile(r"CPU(\d{1,5})", re.ASCII)
_COUNT: Final = re.compile(r"\d{1,20}", re.ASCII)

_FEW: Final = 8

COUNTS_LIMIT: Final = 256 * 1024 * 1024
"""8,192 CPUs with 2,000 interrupts make 180 MB; it is read line by line."""


@frozen
class Described:
    """The files of ``/sys/kernel/irq/N``."""

    actions: tuple[str, ...] | None = None
    chip: str | None = None
    hwirq: int | None = None


@frozen
class Routed:
    """The files of ``/proc/irq/N``."""

    affinity: CpuSet | None = None
    effective_affinity: CpuSet | None = None
    node: int | None = None


@frozen
class Counted:
    """One line of ``/proc/interrupts``."""

    count: int
    cpus: CpuSet


_NOTHING_DESCRIBED: Final = Described()
_NOTHING_ROUTED: Final = Routed()


def read_irqs(tree: Tree) -> tuple[Irq, ...] | None:
    """Read all interrupts that have a number; None where the tree holds none."""
    described = _read_described(tree)
    routed = _read_routed(tree)
    if not described and not routed:
        return None
    counted = dict(parse_counts(_count_lines(tree)))
    states = _read_states(tree)
    owners = _read_owners(tree)
    irqs = []
    for number in sorted(described.keys() | routed.keys()):
        what = described.get(number, _NOTHING_DESCRIBED)
        where = routed.get(number, _NOTHING_ROUTED)
        often = counted.get(number)
        irqs.append(
            Irq(
                number=number,
                actions=what.actions,
                chip=what.chip,
                affinity=where.affinity,
                effective_affinity=where.effective_affinity,
                node=where.node,
                device=parse_last(what.chip or "") or owners.get(number),
                hwirq=what.hwirq,
                likely_managed=is_likely_managed(what.actions, states.get(number)),
                count=often.count if often is not None else None,
                counted_on=often.cpus if often is not None else None,
            )
        )
    return tuple(irqs)


def parse_counts(lines: Iterator[str]) -> Iterator[tuple[int, Counted]]:
    """Read the lines of ``/proc/interrupts`` that have a number.

    The first line names the CPUs that are online, one for each column.
    """
    columns = [int(name) for name in _COLUMN.findall(next(lines, ""))]
    if not columns or max(columns) > MAX_CPU:
        return
    for line in lines:
        name, colon, rest = line.partition(":")
        number = name.strip(" ")
        if not colon or not _NUMBER.fullmatch(number):
            continue
        words = rest.split(None, len(columns))[: len(columns)]
        kinds = set(words)
        if len(words) == len(columns) and all(map(_COUNT.fullmatch, kinds)):
            hits = _positions(words, kinds - {"0"})
            cpus = CpuSet(columns[at] for at in hits)
            yield int(number), Counted(sum(int(words[at]) for at in hits), cpus)


def _positions(words: Sequence[str], wanted: AbstractSet[str]) -> list[int]:
    """Return the positions of any of ``wanted``; most of a large machine's counts are 0."""
    if len(wanted) > _FEW:
        return [at for at, word in enumerate(words) if word in wanted]
    found = []
    for word in wanted:
        at = -1
        with suppress(ValueError):
            while True:
                at = words.index(word, at + 1)
                found.append(at)
    return found


def _read_described(tree: Tree) -> dict[int, Described]:
    directory = tree.directory(_DESCRIBED)
    if directory is None:
        return {}
    with directory:
        return {int(irq.name): _describe(irq) for irq in directory.folders(_NUMBER)}


def _describe(irq: Directory) -> Described:
    actions = irq.text("actions")
    return Described(
        actions=None if actions is None else tuple(filter(None, actions.split(","))),
        chip=irq.text("chip_name") or None,
        hwirq=_hwirq(irq),
    )


def _hwirq(directory: Directory) -> int | None:
    text = directory.text("hwirq")
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 20 else None


def _read_routed(tree: Tree) -> dict[int, Routed]:
    directory = tree.directory(_ROUTED)
    if directory is None:
        return {}
    with directory:
        return {int(irq.name): _route(irq) for irq in directory.folders(_NUMBER)}


def _route(irq: Directory) -> Routed:
    node = irq.integer("node")
    return Routed(
        affinity=irq.sharing("smp_affinity", "smp_affinity_list"),
        effective_affinity=irq.sharing("effective_affinity", "effective_affinity_list"),
        node=None if node is None or node < 0 else node,
    )


def _read_states(tree: Tree) -> dict[int, str]:
    directory = tree.directory(_DEBUGGED)
    if directory is None:
        return {}
    with directory:
        texts = ((name, directory.text(name, whole=True)) for name in directory.names(_NUMBER))
        return {int(name): text for name, text in texts if text}


def _read_owners(tree: Tree) -> dict[int, PciAddress]:
    """Return the device of each interrupt by its ``msi_irqs`` and ``irq``.

    (Documentation/ABI/testing/sysfs-bus-pci.) The line of ``irq`` may be shared: the first device
    stands for all.
    """
    directory = tree.directory(PCI)
    if directory is None:
        return {}
    messages: dict[int, PciAddress] = {}
    pins: dict[int, PciAddress] = {}
    with directory:
        for name in directory.names(ADDRESS):
            device = directory.child(name)
            address = PciAddress.parse(name)
            if device is None:
                continue
            with device:
                messages |= dict.fromkeys(_vectors(device), address)
                pin = device.integer("irq")
                if pin:
                    pins.setdefault(pin, address)
    return pins | messages


def _vectors(device: Directory) -> list[int]:
    directory = device.child("msi_irqs")
    if directory is None:
        return []
    with directory:
        return [int(name) for name in directory.names(_NUMBER)]


def _count_lines(tree: Tree) -> Iterator[str]:
    return tree.lines(_COUNTED, limit=COUNTS_LIMIT)
