"""Take out of a capture what names a machine or its owner: MACs, UUIDs, serial numbers, secrets.

Equal things stay equal: the first MAC becomes ``02:00:00:00:00:01`` wherever it stands, so that
what belonged together still does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MAC: Final = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}(?:\1[0-9a-f]{2})?(?![0-9a-f])",
    re.IGNORECASE | re.ASCII,
)
"""Six bytes, or seven as in ``BOOTIF=01-52-54-00-12-34-56``."""
_NAMED_MAC: Final = re.compile(r"(?<=enx|wlx)[0-9a-f]{12}|(?<=wwx)[0-9a-f]{12}", re.ASCII)
"""Interfaces that systemd names after their MAC (systemd.net-naming-scheme(7))."""
_UUID: Final = re.compile(
    r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?![0-9a-f])",
    re.IGNORECASE | re.ASCII,
)
_SECRET: Final = re.compile(
    r"((?:password|passwd|secret|token|serial_number|serialno|machine[_-]id)[\w.-]{0,64}=)\S+",
    re.IGNORECASE | re.ASCII,
)
"""Without what stands before the word, and within bounds: a hostile text would take for ever."""


class Redactor:
    """Replaces; remembers what it replaced with what."""

    def __init__(self) -> None:
        self._macs: dict[str, int] = {}
        self._uuids: dict[str, int] = {}

    def text(self, text: str) -> str:
        """Give the text without them."""
        text = _SECRET.sub(r"\1removed", text)
        text = _UUID.sub(_numbered(self._uuids, "00000000-0000-4000-8000-{:012x}".format), text)
        text = _MAC.sub(self._mac, text)
        return _NAMED_MAC.sub(_numbered(self._macs, "02{:010x}".format), text)

    def _mac(self, found: re.Match[str]) -> str:
        bytes_ = re.split("[:-]", found[0])
        number = _number(self._macs, "".join(bytes_[-6:]).lower())
        same = bytes_[:-6]
        return found[1].join([*same, "02", *re.findall("..", f"{number:010x}")])


def _numbered(known: dict[str, int], write: Callable[[int], str]) -> Callable[[re.Match[str]], str]:
    return lambda found: write(_number(known, found[0].lower()))


def _number(known: dict[str, int], what: str) -> int:
    return known.setdefault(what, len(known) + 1)
