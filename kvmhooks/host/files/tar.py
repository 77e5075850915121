"""The entries of a tar file, read once from its begin to its end, within bounds.

The format is POSIX's ustar with pax headers (IEEE Std 1003.1-2017, pax, «ustar Interchange Format»
and «pax Header Block»), and GNU's with long names and base-256 numbers (GNU tar 1.35, «Basic Tar
Format»). It is read here because ``tarfile`` trusts a file more than one may that somebody sent: it
reads headers of any length into memory, and as of Python 3.11.2 parses them in quadratic time
(CVE-2024-6232) and goes round for ever where a size is negative (CVE-2025-8194).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BLOCK: Final = 512
_EMPTY: Final = bytes(_BLOCK)
_CHUNK: Final = 1 << 20
_HEADER_LIMIT: Final = 1 << 20
"""Bytes of a long name or of a pax header: those of extended attributes have some KiB."""
_HEADERS_LIMIT: Final = 64 << 20
"""Bytes of all of them."""
_STREAM_LIMIT: Final = 1 << 30
"""Bytes of all together, decompressed: half a million entries have two or three blocks each."""
_CHECKSUM: Final = slice(148, 156)

FILE: Final = b"0"
HARD_LINK: Final = b"1"
LINK: Final = b"2"
DIRECTORY: Final = b"5"
_FILES: Final = frozenset({FILE, b"\0", b"7"})
"""``\\0`` is that of tar before POSIX, 7 a file that is laid out contiguously."""
_WITHOUT_CONTENT: Final = frozenset({HARD_LINK, LINK, DIRECTORY, b"3", b"4", b"6"})
"""The types without content, whatever their size says: 3 and 4 are devices, 6 is a FIFO."""
_LONG: Final = {b"L": "path", b"K": "linkpath"}
"""GNU's, by the keyword that pax has for it."""
_PAX: Final = frozenset({b"x", b"X"})
"""X is Solaris's of the same form."""
_FOR_ALL: Final = b"g"
"""A pax header for all entries that follow: a comment, as a rule, and never a name of one."""
_SPARSE: Final = b"S"
_SPARSE_KEY: Final = b"GNU.sparse."
"""GNU's beginning of what a pax header says of a sparse file."""
_KEYS: Final = frozenset({b"path", b"linkpath", b"size"})
_NAMES: Final = frozenset(key.decode() for key in _KEYS)
"""The keys of a pax header that are of interest."""


class TarError(Exception):
    """A file is no whole tar file, or is beyond the bounds; its text says what was found."""


class Stream(Protocol):
    """A file that can be read from its begin to its end."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes; fewer at the end only."""


class Entry(NamedTuple):
    """One entry, with the names that the headers before it give it."""

    kind: bytes
    """``FILE``, ``HARD_LINK``, ``LINK``, ``DIRECTORY``, or another type flag."""
    name: str
    target: str
    content: bytes
    """Of a file."""


def entries(stream: Stream, content_limit: int) -> Iterator[Entry]:
    """Give each entry of a tar file, in order; files have ``content_limit`` bytes at the most.

    Raises ``TarError``, and what reading ``stream`` raises.
    """
    source = _Source(stream)
    names: dict[str, str] = {}
    while (header := source.read(_BLOCK)) != _EMPTY:
        _check(header)
        kind = header[156:157]
        size = _number(header[124:136])
        if kind in _LONG or kind in _PAX or kind == _FOR_ALL:
            names |= _names(kind, source.header(size))
            continue
        size = _size(names.get("size"), size)
        name = names.get("path") or _name(header)
        if kind in _FILES and name.endswith("/"):
            kind = DIRECTORY  # tar before POSIX has no type flag for it
        if kind == _SPARSE or len(names.keys() - _NAMES) > 0:
            raise TarError("found a sparse file, expected plain ones: pack it without --sparse")
        content = b""
        if kind in _FILES:
            content_limit -= size
            if content_limit < 0:
                raise TarError("found files of more bytes than any host has")
            content = source.padded(size)
        elif kind not in _WITHOUT_CONTENT:
            source.skip(size)
        yield Entry(
            kind=FILE if kind in _FILES else kind,
            name=name,
            target=names.get("linkpath") or _text(header[157:257]),
            content=content,
        )
        names = {}


class _Source:
    """A stream of which all that is asked for has to be there, up to a bound."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._left = _STREAM_LIMIT
        self._headers_left = _HEADERS_LIMIT

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes."""
        self._left -= size
        if self._left < 0:
            raise TarError(f"found more than {_STREAM_LIMIT} bytes, which is no host")
        data = self._stream.read(size)
        if len(data) != size:
            raise TarError("found its end too early, expected more of it: it is not whole")
        return data

    def padded(self, size: int) -> bytes:
        """Return ``size`` bytes that are followed by nothing up to the end of a block."""
        data = self.read(size)
        self.read(-size % _BLOCK)
        return data

    def header(self, size: int) -> bytes:
        """Return a long name or a pax header of ``size`` bytes."""
        self._headers_left -= size
        if size > _HEADER_LIMIT or self._headers_left < 0:
            raise TarError(f"found a header of {size} bytes, which no host's file needs")
        return self.padded(size)

    def skip(self, size: int) -> None:
        """Leave out ``size`` bytes, and what is up to the end of a block."""
        size += -size % _BLOCK
        while size > 0:
            size -= len(self.read(min(size, _CHUNK)))


def _check(header: bytes) -> None:
    """Compare the sum of a header's bytes with what it says: the field itself counts as spaces.

    Historic tars added the bytes as signed ones (POSIX, ustar: «chksum»).
    """
    told = _octal(header[_CHECKSUM])
    total = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    if told != total and told != total - 256 * sum(
        byte > 127 for byte in header[:148] + header[156:]
    ):
        raise TarError("found a header whose sum is wrong, expected one of a tar file")


def _number(field: bytes) -> int:
    """Return what a field says in octal, or in GNU's base 256; none is negative."""
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _size(text: str | None, size: int) -> int:
    """Return the size that a pax header says, or that of the entry's own header."""
    if text is None:
        return size
    if not text.isascii() or not text.isdecimal() or len(text) > 20:
        raise TarError(f"found a size of {text[:40]!r}, expected a number of bytes")
    return int(text)


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    if digits.strip(b"01234567"):
        raise TarError(f"found {field!r} in a header, expected a number in octal")
    return int(digits, 8)


def _name(header: bytes) -> str:
    """Return the name of a header; only POSIX's own has one that goes before."""
    name = _text(header[:100])
    before = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{before}/{name}" if before else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _names(kind: bytes, data: bytes) -> Mapping[str, str]:
    """Return what a header says of the entry that follows."""
    if kind == _FOR_ALL:
        return {}
    return {_LONG[kind]: _text(data)} if kind in _LONG else _records(data)


def _records(data: bytes) -> Mapping[str, str]:
    r"""Read the records of a pax header, each ``LENGTH KEYWORD=VALUE\n``; LENGTH is of it all."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 12].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length].partition(b"=")
        if not equals or not value.endswith(b"\n") or at + length > len(data):
            raise TarError("found a damaged pax header")
        if key in _KEYS or key.startswith(_SPARSE_KEY):
            found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        at += length
    return found
