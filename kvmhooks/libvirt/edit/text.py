"""The text of an XML document with the place of everything in it, so that it can be edited.

A tree that is parsed and written again loses quotes, the order and layout of attributes, entities
and line ends. Here nothing is written again: what changes is cut out of the text, and every other
byte stays as it is.

The parser is expat, which reads no file and no network. Documents with a document type are refused
before any entity is read, and size, depth and number of elements are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Final, overload
from xml.parsers import expat

from attrs import define, field

from kvmhooks.errors import InputError

MAX_BYTES: Final = 4 << 20
"""No larger XML is parsed: libvirt's daemon takes and gives no longer text (``REMOTE_STRING_MAX``,
src/remote/remote_protocol.x). 4,096 pinned vCPUs and 1,000 disks take less than 1 MiB."""

MAX_DEPTH: Final = 100
"""No deeper XML is parsed: libvirt's own is less than 20 deep, and libxml2 gives it none that is
deeper than 256 (``xmlParserMaxDepth``, parserInternals.c)."""

MAX_ELEMENTS: Final = 100_000

MAX_NAMESPACE: Final = 1_024
"""Characters of a namespace: each element in it has it in its name."""

_BOMS: Final = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "ascii", "iso-8859-1", "iso-8859-15", "latin1"})
_DECLARED: Final = re.compile(rb"""<\?xml\b[^>]{0,200}?\bencoding\s*=\s*["']([A-Za-z0-9._-]+)""")
_START: Final = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=/>]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_ATTRIBUTE: Final = re.compile(rb"""\s+([^\s=/>]+)\s*=\s*("[^"]*"|'[^']*')""")
_STEP: Final = re.compile(r"(?:\{[^}]*\})?[^/]+")
_XML: Final = "http://www.w3.org/XML/1998/namespace"


@define(eq=False)
class Attribute:
    """One attribute as it stands in a start tag."""

    value: str
    """The text of it, references resolved."""
    start: int
    """The offset where the value starts, after the quote."""
    end: int
    quote: str


@define(eq=False)
class Element:
    """One element and where it stands: offsets into the UTF-8 text."""

    tag: str
    """``name``, or ``{namespace}name`` for one of a name space."""
    prefix: str
    """The text before the colon in the source, or nothing."""
    attributes: dict[str, Attribute]
    parent: Element | None = field(repr=False)
    start: int
    head_end: int
    """Behind the start tag."""
    foot: int = 0
    """The offset of the end tag; the element's end if it has none (``<a/>``)."""
    end: int = 0
    text: str = ""
    """The characters that stand in it directly, before its first child and after."""
    children: list[Element] = field(factory=list, repr=False)
    number: int = 1
    """Its place among the children of its parent that have the same tag, counted from 1."""
    _by_tag: dict[str, list[Element]] = field(factory=dict, init=False, repr=False)

    @property
    def is_closed(self) -> bool:
        """It is written without an end tag: ``<a/>``."""
        return self.foot == self.end

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of an attribute."""
        found = self.attributes.get(name)
        return default if found is None else found.value

    def all(self, path: str) -> Iterator[Element]:
        """Yield every element below this one at ``path`` (``devices/disk``), in order."""
        step = _STEP.match(path)
        assert step is not None  # paths are ours
        rest = path[step.end() + 1 :]
        for child in self._by_tag.get(step[0], ()):
            if rest:
                yield from child.all(rest)
            else:
                yield child

    def append(self, child: Element) -> None:
        """Add a child behind all others."""
        alike = self._by_tag.setdefault(child.tag, [])
        alike.append(child)
        child.number = len(alike)
        self.children.append(child)

    def find(self, path: str) -> Element | None:
        """Return the first element at ``path``."""
        return next(self.all(path), None)

    def walk(self) -> Iterator[Element]:
        """Yield this element and everything in it, in the document's order."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def name(self) -> str:
        """The tag as the source has it, without a name space's address."""
        local = self.tag.rpartition("}")[2]
        return f"{self.prefix}:{local}" if self.prefix else local

    @property
    def path(self) -> str:
        """Its place below the root (``devices/disk[2]/driver``); numbers count from 1."""
        steps = []
        at = self
        while at.parent is not None:
            is_alone = len(at.parent._by_tag[at.tag]) == 1  # noqa: SLF001 -- own
            steps.append(at.name if is_alone else f"{at.name}[{at.number}]")
            at = at.parent
        return "/".join(reversed(steps)) or self.name


@define(eq=False, slots=False)
class Source:
    """A parsed document: its text as UTF-8 and the tree of its elements."""

    data: bytes
    encoding: str
    bom: bytes
    root: Element
    name: str

    @cached_property
    def quote(self) -> str:
        """The quote that the document uses: that of its first attribute; libvirt's is ``'``."""
        for element in self.root.walk():
            for attribute in element.attributes.values():
                return attribute.quote
        return "'"

    @cached_property
    def newline(self) -> str:
        """The end of the document's lines."""
        return "\r\n" if b"\r\n" in self.data else "\n"

    def encode(self, data: bytes) -> bytes:
        """Give UTF-8 text back in the encoding that the document came in."""
        if self.encoding == "utf-8":
            return self.bom + data
        return self.bom + data.decode().encode(self.encoding, "xmlcharrefreplace")


def parse(document: str | bytes, name: str = "domain XML") -> Source:
    """Parse a document; ``name`` is for messages.

    Raises ``InputError`` for what is no well-formed XML, has a document type or an encoding other
    than UTF-8, UTF-16, ASCII or Latin-1 and -9, or is larger than any domain's.
    """
    try:
        raw = document.encode() if isinstance(document, str) else document
    except UnicodeError as error:
        raise InputError(f"{name}: found a text that is no Unicode: {error}") from error
    if len(raw) > MAX_BYTES:
        raise InputError(f"{name}: found {len(raw)} bytes or more, expected at most {MAX_BYTES}")
    bom, encoding = _encoding_of(raw, name, is_text=isinstance(document, str))
    try:
        data = raw[len(bom) :].decode(encoding).encode()
    except UnicodeError as error:
        raise InputError(f"{name}: found bytes that are not {encoding}: {error}") from error
    builder = _Builder(data, name)
    return Source(data, encoding, bom, builder.build(), name)


def _encoding_of(raw: bytes, name: str, *, is_text: bool) -> tuple[bytes, str]:
    for bom, encoding in _BOMS:
        if raw.startswith(bom):
            return bom, encoding
    declared = None if is_text else _DECLARED.match(raw)
    encoding = "utf-8" if declared is None else declared[1].decode().lower()
    if encoding not in _ENCODINGS:
        known = ", ".join(sorted(_ENCODINGS))
        raise InputError(f"{name}: found the encoding {encoding[:40]!r}, expected one of {known}")
    return b"", encoding


class _Builder:
    """Builds the tree from what expat tells."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._scopes: list[dict[str, str]] = [{"xml": _XML}]
        """The name spaces that each open element declares, by prefix."""
        self._root: Element | None = None
        self._count = 0
        # The declaration's encoding no longer holds: the text is UTF-8 by now.
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def build(self) -> Element:
        try:
            self._parser.Parse(self._data, True)
        except expat.ExpatError as error:
            raise InputError(f"{self._name}: {error}") from error
        assert self._root is not None  # expat refuses a document without an element
        return self._root

    def _doctype(self, name: str, *_: object) -> None:
        raise InputError(
            f"{self._name}: found a document type {name[:40]!r}, expected none: libvirt writes none"
        )

    def _start(self, raw_name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise InputError(
                f"{self._name}: found more than {MAX_ELEMENTS} elements, or some more than "
                f"{MAX_DEPTH} deep, expected a domain"
            )
        own = {
            key.partition(":")[2]: uri
            for key, uri in attributes.items()
            if key == "xmlns" or key.startswith("xmlns:")
        }
        if any(len(uri) > MAX_NAMESPACE for uri in own.values()):
            line = self._parser.CurrentLineNumber
            raise InputError(
                f"{self._name}: line {line}: found a namespace of more than {MAX_NAMESPACE} "
                "characters, expected a domain's"
            )
        self._scopes.append(own)
        start = self._parser.CurrentByteIndex
        head = _START.match(self._data, start)
        assert head is not None  # expat took it for a start tag
        prefix, _, local = raw_name.rpartition(":")
        uri = next((scope[prefix] for scope in reversed(self._scopes) if prefix in scope), "")
        if prefix and not uri:
            line = self._parser.CurrentLineNumber
            raise InputError(f"{self._name}: line {line}: the prefix {prefix[:40]!r} is not bound")
        element = Element(
            tag=f"{{{uri}}}{local}" if uri else local,
            prefix=prefix,
            attributes=self._attributes(attributes, start, head.end()),
            parent=self._open[-1] if self._open else None,
            start=start,
            head_end=head.end(),
        )
        if self._open:
            self._open[-1].append(element)
        else:
            self._root = element
        self._open.append(element)
        self._texts.append([])

    def _attributes(self, attributes: dict[str, str], start: int, end: int) -> dict[str, Attribute]:
        """Return the place of each; expat has resolved what it says."""
        places = {}
        for found in _ATTRIBUTE.finditer(self._data, start, end):
            name = found[1].decode()
            quote = found[2][:1].decode()
            places[name] = Attribute(attributes[name], found.start(2) + 1, found.end(2) - 1, quote)
        return places

    def _end(self, _name: str) -> None:
        self._scopes.pop()
        element = self._open.pop()
        element.text = "".join(self._texts.pop())
        is_closed = self._data[element.head_end - 2 : element.head_end] == b"/>"
        if is_closed:
            element.foot = element.end = element.head_end
        else:
            element.foot = self._parser.CurrentByteIndex
            element.end = self._data.index(b">", element.foot) + 1

    def _characters(self, text: str) -> None:
        self._texts[-1].append(text)
