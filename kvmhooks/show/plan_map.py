"""VMs in place on a host: what each CPU is given to, as text and for a drawing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Final

from attrs import frozen

from kvmhooks.host.drawing import Mark, draw
from kvmhooks.host.model import Cache, Host, Node
from kvmhooks.host.nesting import cache_size
from kvmhooks.host.picture import WIDTH, size
from kvmhooks.inventory.usage import Holding
from kvmhooks.placement.model import Plan
from kvmhooks.values import ByteSize, CpuSet, union
from kvmhooks.wording import counted

_INDENT: Final = " " * 15

_COLOURS: Final = ("#a6cee3", "#fdbf6f", "#b2df8a", "#cab2d6", "#ffff99", "#fb9a99", "#c7e9c0")
"""Of the VMs in turn: ColorBrewer's light qualitative colours, which black text is legible on."""

_KEYS: Final = {
    "a0": "vCPU 0 of a, alone",
    "a~": "vCPUs of a float here",
    "a+": "QEMU's other threads of a",
    "#": "another VM's",
    "x": "kept idle beside a vCPU",
    "-": "the host's own",
    ".": "free",
}
"""The letters that may stand after a CPU's number, with ``a`` for any VM."""


@frozen
class _Given:
    """The use that one CPU is given to."""

    kind: str
    """A key of ``_KEYS``."""
    vms: tuple[int, ...] = ()
    """The VMs, by their index."""
    vcpu: int | None = None

    @property
    def text(self) -> str:
        """The short form that the picture shows."""
        names = "".join(map(letters, self.vms)) if len(self.vms) < 4 else "*"
        return {"a0": f"{names}{self.vcpu}"}.get(self.kind, self.kind.replace("a", names))


def placed_text(host: Host, plans: Sequence[Plan], others: Iterable[Holding] = ()) -> str:
    """Return the host's CPUs, a line for each L3 and a bracket for each core, with what is on them.

    ``others`` are the holdings of VMs other than those of ``plans``.
    """
    given = _given(host, plans, others)
    names = ", ".join(f"{letters(at)} is {plan.name}" for at, plan in enumerate(plans))
    used = {each.kind for each in given.values()}
    keys = [f"{key} {meaning}" for key, meaning in _KEYS.items() if key in used]
    lines = [*textwrap.wrap(names, WIDTH), *_in_lines(keys)]
    for node in host.nodes or ():
        lines += [f"node {node.id}: {_amounts(node)}", *_memory(plans, node.id)]
        lines += _rows(host, (node.cpus or CpuSet()) & host.online, given)
    loose = host.online - union(node.cpus or CpuSet() for node in host.nodes or ())
    if loose:
        lines += ["CPUs of no node", *_memory(plans, None), *_rows(host, loose, given)]
    return "\n".join(lines) + "\n"


def placed_drawing(host: Host, plans: Sequence[Plan], others: Iterable[Holding] = ()) -> str:
    """Return the drawing of the host with the VMs' threads in it, as SVG."""
    marks = {}
    for cpu, given in _given(host, plans, others).items():
        if given.vms:
            names = " ".join(plans[vm].name for vm in given.vms[:3])
            tail = {"a0": f":{given.vcpu}", "a~": "~", "a+": "+"}[given.kind]
            marks[cpu] = Mark(f"{names}{tail}", _COLOURS[given.vms[0] % len(_COLOURS)])
        elif given.kind != ".":
            marks[cpu] = Mark({"#": "taken", "-": "host", "x": "idle"}[given.kind], "#c8c8c8")
    return draw(host, marks)


def letters(index: int) -> str:
    """Return the short name of a VM: a, b, … z, aa, ab, …."""
    ahead, last = divmod(index, len(ascii_lowercase))
    return (letters(ahead - 1) if ahead else "") + ascii_lowercase[last]


def _given(host: Host, plans: Sequence[Plan], others: Iterable[Holding]) -> dict[int, _Given]:
    """Return what each online CPU is given to; a vCPU's own CPU before all else."""
    given: dict[int, _Given] = {}
    floating, helping = _unpinned(plans)
    # The weakest first: each of the next takes what it wants.
    _give(given, "-", union(plan.housekeeping for plan in plans))
    for kind, vms in (("a+", helping), ("a~", floating)):
        given |= {cpu: _Given(kind, tuple(those)) for cpu, those in vms.items()}
    _give(given, "x", union(plan.idle for plan in plans))
    _give(given, "#", union(other.alone(host) for other in others))
    for at, plan in enumerate(plans):
        for pin in plan.vcpus:
            if pin.vcpu in plan.dedicated:
                given[pin.cpus.first()] = _Given("a0", (at,), pin.vcpu)
    return {cpu: given.get(cpu, _Given(".")) for cpu in host.online}


def _give(given: dict[int, _Given], kind: str, cpus: CpuSet) -> None:
    given |= dict.fromkeys(cpus, _Given(kind))


def _unpinned(plans: Sequence[Plan]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return for each CPU the VMs whose vCPUs float over it, and those with other threads there."""
    floating: dict[int, list[int]] = {}
    helping: dict[int, list[int]] = {}
    for at, plan in enumerate(plans):
        for pin in plan.vcpus:
            if pin.vcpu not in plan.dedicated:
                _note(floating, pin.cpus, at)
        for cpus in (plan.emulator, plan.vhost, *(pin.cpus for pin in plan.iothreads)):
            _note(helping, cpus, at)
    return floating, helping


def _note(noted: dict[int, list[int]], cpus: CpuSet, vm: int) -> None:
    for cpu in cpus:
        vms = noted.setdefault(cpu, [])
        if vm not in vms:
            vms.append(vm)


def _in_lines(keys: Iterable[str]) -> list[str]:
    """Return explanations, none of them broken over two lines."""
    unbroken = "; ".join(key.replace(" ", "\0") for key in keys)
    lines = textwrap.wrap(unbroken, WIDTH, break_on_hyphens=False, break_long_words=False)
    return [line.replace("\0", " ") for line in lines]


def _amounts(node: Node) -> str:
    if node.memory_kib is None:
        return "memory not known"
    free = "" if node.free_kib is None else f", {size(node.free_kib)} free"
    return size(node.memory_kib) + free


def _memory(plans: Sequence[Plan], node: int | None) -> Iterator[str]:
    lines = [
        f"{letters(at)} {ByteSize.kib(cell.memory_kib)} (cell {cell.id}, "
        f"{ByteSize.kib(cell.page_kib)} pages)"
        for at, plan in enumerate(plans)
        for cell in plan.cells
        if cell.node == node
    ]
    if lines:
        yield f"  {'memory':<12} {', '.join(lines)}"


def _rows(host: Host, cpus: CpuSet, given: Mapping[int, _Given]) -> Iterator[str]:
    """Yield a row for each L3, or for all where there is none, with a bracket for each core."""
    wide = len(str(max(host.online)))
    mark = max(len(each.text) for each in given.values())
    caches: list[Cache | None] = [
        cache for cache in host.caches or () if cache.level == 3 and not cpus.isdisjoint(cache.cpus)
    ]
    known = union(cache.cpus for cache in caches if cache is not None)
    for cache in [*caches, None]:
        served = cpus - known if cache is None else cpus & cache.cpus
        if not served:
            continue
        name = "no L3" if cache is None else f"L3 {cache_size(cache.size_kib)}".strip()
        cores = dict.fromkeys(host.core_of(cpu) & cpus for cpu in served)
        brackets = [
            f"[{' '.join(f'{cpu:>{wide}}:{given[cpu].text:<{mark}}' for cpu in core)}]"
            for core in cores
        ]
        per_line = max(1, (WIDTH - len(_INDENT) + 1) // (max(map(len, brackets)) + 1))
        for at in range(0, len(brackets), per_line):
            head = f"  {name:<12} " if at == 0 else _INDENT
            yield head + " ".join(brackets[at : at + per_line])
    if not cpus:
        yield f"  {counted(0, 'CPU')}: memory only"
