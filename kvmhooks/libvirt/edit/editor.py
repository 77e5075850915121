"""Changes to the text of a document: attributes set, elements added, every other byte kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias
from xml.sax.saxutils import escape

from attrs import Factory, define, frozen

from kvmhooks.libvirt.edit.text import Element, Source

ORDER: Final = {
    "domain": (
        "name", "uuid", "genid", "title", "description", "metadata", "maxMemory", "memory",
        "currentMemory", "blkiotune", "memtune", "memoryBacking", "vcpu", "vcpus", "iothreads",
        "iothreadids", "cputune", "numatune", "resource", "sysinfo", "bootloader", "os",
        "features", "cpu", "clock", "on_poweroff", "on_reboot", "on_crash", "pm", "perf",
        "devices",
    ),
    "cpu": ("model", "vendor", "topology", "cache", "maxphysaddr", "feature", "numa"),
    "cputune": ("shares", "vcpupin", "emulatorpin", "iothreadpin"),
    "memoryBacking": ("hugepages", "nosharepages", "locked"),
    "disk": ("driver",),
    "interface": ("mac", "source", "target", "model", "driver"),
    "controller": ("driver",),
}  # fmt: skip
"""The order in which libvirt writes children: a new one goes behind those that stand before it
here. A tag that is not here comes last; libvirt reads any order.
"""


@frozen
class Change:
    """One thing that is different."""

    concern: str
    at: str
    """The place: ``cputune/vcpupin[1]@cpuset``, or the path of a new element."""
    before: str | None
    """The text that stood there; None where nothing did."""
    after: str
    why: str

    def __str__(self) -> str:
        before = "nothing" if self.before is None else self.before
        return f"{self.at}: {before} -> {self.after} ({self.why})"


@define(eq=False)
class New:
    """An element that is added."""

    tag: str
    attributes: dict[str, str] = Factory(dict)
    children: list[New] = Factory(list)
    text: str = ""
    concern: str = ""
    why: str = ""

    def get(self, name: str) -> str | None:
        """Return the value of an attribute."""
        return self.attributes.get(name)

    def all(self, tag: str) -> list[New]:
        """Return its children of this tag."""
        return [child for child in self.children if child.tag == tag]

    def written(self, *, quote: str, newline: str, indent: str) -> str:
        """Return the text, without what stands before it; ``newline`` is empty for one line."""
        attributes = "".join(
            f" {name}={quote}{_escaped(value, quote)}{quote}"
            for name, value in self.attributes.items()
        )
        if not self.children:
            text = escape(self.text)
            return (
                f"<{self.tag}{attributes}>{text}</{self.tag}>"
                if text
                else f"<{self.tag}{attributes}/>"
            )
        step = _STEP if newline else ""
        inner = "".join(
            f"{newline}{indent}{step}"
            + child.written(quote=quote, newline=newline, indent=indent + step)
            for child in self.children
        )
        return f"<{self.tag}{attributes}>{inner}{newline}{indent}</{self.tag}>"


Target: TypeAlias = Element | New

_STEP: Final = "  "


class Editor:
    """Collects changes to one document; nothing is written before ``result``."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.changes: list[Change] = []
        self.concern = ""
        self._cuts: list[tuple[int, int, str]] = []
        self._added: defaultdict[int, list[New]] = defaultdict(list)
        self._parents: dict[int, Element] = {}
        self._fresh: dict[tuple[int, str], str] = {}

    def child(self, parent: Target, tag: str, why: str) -> Target:
        """Return the first child of this tag, the document's or an added one; else a new one."""
        for found in self.children(parent, tag):
            return found
        return self.add(parent, New(tag), why)

    def children(self, parent: Target, tag: str) -> list[Target]:
        """Return all children of this tag, those that were added too."""
        own: list[Target] = list(parent.all(tag))
        added = self._added[id(parent)] if isinstance(parent, Element) else []
        return own + [new for new in added if new.tag == tag]

    def add(self, parent: Target, new: New, why: str) -> New:
        """Add an element where libvirt would write it."""
        new.concern, new.why = self.concern, why
        if isinstance(parent, New):
            parent.children.append(new)
            return new
        self._parents[id(parent)] = parent
        self._added[id(parent)].append(new)
        return new

    def set(self, target: Target, name: str, value: str, why: str) -> None:
        """Give an attribute a value, if it has another one."""
        if isinstance(target, New):
            target.attributes[name] = value
            return
        found = target.attributes.get(name)
        if self._fresh.get((id(target), name), None if found is None else found.value) == value:
            return
        at = f"{target.path}@{name}"
        before = None if found is None else found.value
        self.changes.append(Change(self.concern, at, before, value, why))
        self._fresh[id(target), name] = value
        if found is not None:
            self._cuts.append((found.start, found.end, _escaped(value, found.quote)))
            return
        quote = self.source.quote
        end = self._before_blanks(target.head_end - (2 if target.is_closed else 1))
        self._cuts.append((end, end, f" {name}={quote}{_escaped(value, quote)}{quote}"))

    def get(self, target: Target, name: str) -> str | None:
        """Return the value of an attribute, as it will be."""
        fresh = self._fresh.get((id(target), name))
        return target.get(name) if fresh is None else fresh

    def result(self) -> tuple[tuple[str, str], ...]:
        """Return the text in pieces, each before and after, and tell the changes for new elements.

        ``written`` makes the document of them.
        """
        cuts = list(self._cuts)
        for key, news in self._added.items():
            if news:
                cuts += self._insertions(self._parents[key], news)
        data, at = self.source.data, 0
        pieces = []
        for start, end, text in sorted(cuts, key=lambda cut: cut[:2]):
            kept = data[at:start].decode()
            pieces += [(kept, kept), (data[start:end].decode(), text)]
            at = end
        kept = data[at:].decode()
        return (*pieces, (kept, kept))

    def written(self, pieces: Sequence[tuple[str, str]]) -> bytes:
        """Return the changed document in its own encoding."""
        return self.source.encode("".join(after for _, after in pieces).encode())

    def _insertions(self, parent: Element, news: Sequence[New]) -> list[tuple[int, int, str]]:
        groups: dict[int, list[New]] = {}
        anchors: dict[int, Element | None] = {}
        found = {tag: _anchor(parent, tag) for tag in {new.tag for new in news}}
        for new in sorted(news, key=lambda new: _rank(parent, new.tag)):
            anchor = found[new.tag]
            groups.setdefault(id(anchor), []).append(new)
            anchors[id(anchor)] = anchor
            at = parent.path if parent.parent is not None else ""
            self._tell(new, at, new)
        return [self._insertion(parent, anchors[key], group) for key, group in groups.items()]

    def _tell(self, new: New, at: str, top: New) -> None:
        """Note a change for each new element that says something."""
        at = f"{at}/{new.tag}" if at else new.tag
        if new.attributes or not new.children:
            alone = New(new.tag, new.attributes, text=new.text)
            written = alone.written(quote=self.source.quote, newline="", indent="")
            concern, why = new.concern or top.concern, new.why or top.why
            self.changes.append(Change(concern, at, None, written, why))
        for child in new.children:
            self._tell(child, at, new if new.why else top)

    def _insertion(
        self, parent: Element, anchor: Element | None, news: Sequence[New]
    ) -> tuple[int, int, str]:
        own = self._indent(parent)
        first = parent.children[0] if parent.children else None
        inner = None if own is None else own + _STEP
        if first is not None:
            inner = self._indent(first)
        elif self.source.data[parent.head_end : parent.foot].strip():
            inner = None  # a comment, or text that blanks would change
        newline = "" if inner is None else self.source.newline
        text = "".join(
            f"{newline}{inner or ''}"
            + new.written(quote=self.source.quote, newline=newline, indent=inner or "")
            for new in news
        )
        if anchor is not None:
            return anchor.end, anchor.end, text
        if parent.is_closed:
            end = parent.head_end
            start = self._before_blanks(end - 2)
            return start, end, f">{text}{newline}{own or ''}</{parent.name}>"
        if first is None and newline:
            return parent.head_end, parent.foot, f"{text}{newline}{own or ''}"
        return parent.head_end, parent.head_end, text

    def _indent(self, element: Element) -> str | None:
        """Return the blanks before an element that starts its line; None for one that does not."""
        start = self._before_blanks(element.start, b" \t")
        if element.start and self.source.data[max(start - 1, 0) : start] != b"\n":
            return None
        return self.source.data[start : element.start].decode()

    def _before_blanks(self, end: int, blanks: bytes = b" \t\r\n") -> int:
        """Return where the blanks start that end at ``end``; without any it is ``end``."""
        while end and self.source.data[end - 1] in blanks:
            end -= 1
        return end


def _anchor(parent: Element, tag: str) -> Element | None:
    """Return the child behind which a new one of this tag belongs; None: before all of them."""
    order = ORDER.get(parent.tag)
    if order is None or tag not in order:
        return parent.children[-1] if parent.children else None
    before = order[: order.index(tag) + 1]
    known = [child for child in parent.children if child.tag in before]
    return known[-1] if known else None


def _rank(parent: Element, tag: str) -> int:
    order = ORDER.get(parent.tag, ())
    return order.index(tag) if tag in order else len(order)


def _escaped(value: str, quote: str) -> str:
    entities: Mapping[str, str] = {"'": "&apos;"} if quote == "'" else {'"': "&quot;"}
    return escape(value, dict(entities))
