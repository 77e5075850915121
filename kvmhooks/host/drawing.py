"""A host as an SVG drawing, in the manner of lstopo: boxes in boxes, down to the threads.

The size follows from what is inside, so it is legible for 2 and for 256 CPUs. It is plain SVG 1.1
(https://www.w3.org/TR/SVG11/) with no script and nothing from elsewhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from attrs import evolve, frozen

from kvmhooks.host.nesting import CpuPlace, nest
from kvmhooks.host.picture import size
from kvmhooks.values import CpuSet
from kvmhooks.wording import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvmhooks.host.bus.devices import PciDevice
    from kvmhooks.host.model import Cpu, Host, Node

_GAP: Final = 6
_LINE: Final = 14
_LETTER: Final = 6.6
"""The width of a letter of the font, on average."""
_THREAD: Final = (34, 20)
_ASPECT: Final = 1.6
"""Width to height that is aimed at, as of a screen."""

_FILLS: Final = {
    "machine": "#ffffff",
    "package": "#eeeeee",
    "node": "#f3e3c8",
    "die": "#e4e4f4",
    "l3": "#ffffff",
    "l2": "#f8f8f8",
    "core": "#d2d2d2",
    "memory": "#f3e3c8",
    "devices": "#dcecd6",
    "offline": "#c8c8c8",
    "thread": "#ffffff",
    "efficiency": "#d9f0d9",
    "isolated": "#f6c9c9",
}


@frozen
class Box:
    """Something to draw: its text lines, and below them rows of boxes."""

    fill: str
    lines: tuple[str, ...]
    rows: tuple[tuple[Box, ...], ...]
    width: float
    height: float


def _box(
    fill: str,
    lines: tuple[str, ...],
    rows: tuple[tuple[Box, ...], ...] = (),
    least: tuple[float, float] = (0, 0),
) -> Box:
    """Make a box as large as its texts and rows need.

    XML 1.0 has no control characters, not even as references (2.2, «Char»): a text has none.
    """
    lines = tuple(map(printable, lines))
    wide = [len(line) * _LETTER + 2 * _GAP for line in lines] + [_row_width(row) for row in rows]
    texts = len(lines) * _LINE + _GAP
    inner = sum(max(box.height for box in row) + _GAP for row in rows)
    return Box(
        fill=_FILLS[fill],
        lines=lines,
        rows=rows,
        width=max([*wide, least[0]]),
        height=max(texts + inner, least[1]),
    )


@frozen
class Mark:
    """The owner of a thread: a word beside its number, and a colour."""

    text: str
    fill: str


def draw(host: Host, marks: Mapping[int, Mark] | None = None) -> str:
    """Draw the machine, its threads with their ``marks``, by CPU."""
    threads = {cpu.id: _thread(cpu, (marks or {}).get(cpu.id)) for cpu in host.cpus or ()}
    nodes = {node.id: node for node in host.nodes or ()}
    inside = [_place(place, threads, nodes) for place in nest(host).inside]
    whole = _box("machine", _title(host), (*_rows(inside), *_rows(_beside(host))))
    width, height = math.ceil(whole.width) + 2 * _GAP, math.ceil(whole.height) + 2 * _GAP
    head = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {head} font-family="sans-serif" font-size="11">',
        f"<title>{escape(whole.lines[0])}</title>",
    ]
    _write(whole, _GAP, _GAP, out)
    return "\n".join([*out, "</svg>"]) + "\n"


def _title(host: Host) -> tuple[str, ...]:
    model = host.processor.model_name if host.processor is not None else None
    memory = host.memory.total_kib if host.memory is not None else None
    told = [] if memory is None else [size(memory)]
    return (", ".join([model or "machine", f"{len(host.online)} CPUs", *told]),)


def _place(place: CpuPlace, threads: Mapping[int, Box], nodes: Mapping[int, Node]) -> Box:
    """Draw a place with what is inside; threads that are in no place inside come by themselves."""
    inside = [_place(each, threads, nodes) for each in place.inside]
    loose = place.cpus - CpuSet(cpu for each in place.inside for cpu in each.cpus)
    inside += [threads[cpu] for cpu in loose if cpu in threads]
    label = place.label
    if place.kind == "node":
        node = nodes[int(label.removeprefix("node "))]
        label = label if node.memory_kib is None else f"{label}: {size(node.memory_kib)}"
    rows = (tuple(inside),) if place.kind == "core" else _rows(inside)
    return _box(place.kind, (label.strip(),), rows)


def _thread(cpu: Cpu, mark: Mark | None) -> Box:
    if mark is not None:
        box = _box("thread", (f"{cpu.id} {mark.text}",), least=_THREAD)
        return evolve(box, fill=mark.fill)
    fill = "thread"
    if cpu.isolated or cpu.nohz_full:
        fill = "isolated"
    elif cpu.kind == "efficiency":
        fill = "efficiency"
    return _box(fill, (str(cpu.id),), least=_THREAD)


def _beside(host: Host) -> list[Box]:
    """Return what is in no package: memory-only nodes, CPUs that are offline, devices by node."""
    boxes = [
        _box("memory", (f"node {node.id}: {size(node.memory_kib)}", "memory only"))
        for node in host.nodes or ()
        if not node.cpus
    ]
    offline = CpuSet(cpu.id for cpu in host.cpus or () if cpu.online is False)
    if offline:
        boxes.append(_box("offline", ("offline", str(offline))))
    by_node: dict[int | None, list[str]] = {}
    for device in host.pci or ():
        if device.net or device.block or device.boot_vga or device.sriov is not None:
            by_node.setdefault(device.node, []).append(_device(device))
    for node, lines in sorted(by_node.items(), key=lambda item: -1 if item[0] is None else item[0]):
        where = "devices" if node is None else f"devices of node {node}"
        boxes.append(_box("devices", (where, *lines)))
    return boxes


def _device(device: PciDevice) -> str:
    names = " ".join((*device.net, *device.block)) or ("boot display" if device.boot_vga else "")
    functions = f" ({device.sriov.num_vfs} VFs)" if device.sriov is not None else ""
    return f"{device.address} {names}{functions}"


def _rows(boxes: Sequence[Box]) -> tuple[tuple[Box, ...], ...]:
    """Set boxes in rows so that the whole is about as wide as a screen."""
    if not boxes:
        return ()
    area = sum((box.width + _GAP) * (box.height + _GAP) for box in boxes)
    width = max(math.sqrt(area * _ASPECT), max(box.width for box in boxes) + _GAP)
    rows: list[list[Box]] = [[]]
    for box in boxes:
        if rows[-1] and _row_width((*rows[-1], box)) > width + _GAP:
            rows.append([])
        rows[-1].append(box)
    return tuple(map(tuple, rows))


def _row_width(row: Sequence[Box]) -> float:
    return sum(box.width + _GAP for box in row) + _GAP


def _write(box: Box, left: float, top: float, out: list[str]) -> None:
    out.append(
        f'<rect x="{left:g}" y="{top:g}" width="{box.width:g}" height="{box.height:g}"'
        f' fill="{box.fill}" stroke="#404040"/>'
    )
    for number, line in enumerate(box.lines, 1):
        out.append(f'<text x="{left + _GAP:g}" y="{top + number * _LINE:g}">{escape(line)}</text>')
    y = top + len(box.lines) * _LINE + _GAP
    for row in box.rows:
        x = left + _GAP
        for inner in row:
            _write(inner, x, y, out)
            x += inner.width + _GAP
        y += max(inner.height for inner in row) + _GAP
