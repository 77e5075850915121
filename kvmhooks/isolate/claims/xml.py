"""A domain's XML as a tree, bounded before and while it is parsed.

As much of ElementTree's interface as reading a domain takes, on top of the same parser: to import
ElementTree itself takes longer than the interpreter's own start, and libvirt waits for the hook.
"""

from __future__ import annotations

from xml.parsers import expat

from kvmhooks.errors import IsolationError
from kvmhooks.policy import NAMESPACE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _collections_abc import Callable, Iterator
    from typing import Final

MAX_BYTES: Final = 4 << 20
"""No larger XML is parsed: 4,096 pinned vCPUs and 1,000 disks take less than 1 MiB."""

MAX_DEPTH: Final = 100
"""No deeper XML is parsed: libvirt's own is less than 20 deep."""


class Element:
    """One element. A path is the names of elements from a child down (``cputune/vcpupin``)."""

    __slots__ = ("attributes", "children", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        """Its name: ``{uri}name`` in our namespace, in others as it stands, with its prefix."""
        self.attributes = attributes
        self.text = ""
        """The text before its first child."""
        self.children: list[Element] = []

    def __iter__(self) -> Iterator[Element]:
        return iter(self.children)

    def get(self, attribute: str, default: str = "") -> str:
        """Return the value of an attribute."""
        return self.attributes.get(attribute, default)

    def findall(self, path: str) -> list[Element]:
        """Return all elements of this path, in order."""
        found = [self]
        for step in path.split("/"):
            found = [child for parent in found for child in parent.children if child.tag == step]
        return found

    def find(self, path: str) -> Element | None:
        """Return the first element of this path."""
        return next(iter(self.findall(path)), None)

    def findtext(self, path: str, default: str = "") -> str:
        """Return the text of the first element of this path."""
        found = self.find(path)
        return default if found is None else found.text


def holds(data: bytes, path: str) -> bool:
    """Return whether an element has this path from the root on, as far as a document can be read.

    It is read no further than to that element, and no more of it than any domain has.
    """
    steps = [""]
    wanted = ["", *path.split("/")]

    def start(tag: str, _: dict[str, str]) -> None:
        steps.append(tag)
        if len(steps) == len(wanted) and steps == wanted:
            raise _FoundError

    parser = _parser(start, steps.pop)
    try:
        parser.Parse(data[:MAX_BYTES], True)
    except _FoundError:
        return True
    except (expat.ExpatError, IsolationError):
        return False
    return False


def parse(data: bytes) -> Element:
    """Return the root element.

    Raises ``IsolationError`` for what is no XML, too large, too deep, or has a document type, which
    is the only place where entities are defined.
    """
    if len(data) > MAX_BYTES:
        raise IsolationError(
            f"domain XML: found {len(data)} bytes or more, expected at most {MAX_BYTES}"
        )
    document = Element("", {})
    opened = [document]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(opened) > MAX_DEPTH:
            raise IsolationError(f"domain XML: nested more than {MAX_DEPTH} elements deep")
        element = Element(tag, attributes)
        opened[-1].children.append(element)
        opened.append(element)

    def text(piece: str) -> None:
        if not opened[-1].children:
            opened[-1].text += piece

    parser = _parser(start, opened.pop)
    parser.CharacterDataHandler = text
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise IsolationError(f"domain XML of {len(data)} bytes: {error}") from error
    return document.children[0]


class _FoundError(Exception):
    """The end of a search: its element is there."""


class _Names:
    """The prefixes that mean our namespace where the parser is.

    Expat can put the namespace before each name, but then each element has a copy of one that may
    be megabytes long.
    """

    def __init__(self) -> None:
        self._meanings: dict[str, list[bool]] = {}
        """By prefix, whether it means ours, as the elements around have it; the last one counts."""
        self._declared: list[list[str]] = []

    def enter(self, tag: str, attributes: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Return an element's name, and its attributes without those that declare namespaces."""
        declared = [key for key in attributes if key == "xmlns" or key.startswith("xmlns:")]
        for key in declared:
            uri = attributes.pop(key)
            self._meanings.setdefault(key[6:], []).append(uri == NAMESPACE)
        self._declared.append(declared)
        prefix, _, name = tag.rpartition(":")
        meanings = self._meanings.get(prefix)
        return (f"{{{NAMESPACE}}}{name}" if meanings and meanings[-1] else tag), attributes

    def leave(self) -> None:
        """Forget what the element that ends has declared."""
        for key in self._declared.pop():
            self._meanings[key[6:]].pop()


def _parser(
    start: Callable[[str, dict[str, str]], object], end: Callable[[], object]
) -> expat.XMLParserType:
    """Return a parser of UTF-8, which is what libvirt writes, without document types.

    A document's word on its encoding is left out: expat would have Python look it up, and few of
    Python's are encodings of texts.
    """
    names = _Names()

    def leave(_: str) -> None:
        names.leave()
        end()

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = lambda tag, attributes: start(*names.enter(tag, attributes))
    parser.EndElementHandler = leave
    return parser


def _refuse_doctype(name: str, *_: object) -> None:
    raise IsolationError(
        f"domain XML: found a document type {name[:40]!r}, expected none: libvirt writes none"
    )
