"""A guest's console for a terminal that does not obey it: what can be read of it.

A terminal obeys the control characters C0 and C1, and sequences that begin with one (ECMA-48). The
most common of those, CSI (5.4: colours, the cursor), says nothing when it is not obeyed and is left
out; all others are shown (``wording.printable``).
"""

from __future__ import annotations

import codecs
import io
import re
from typing import Any, Final

from kvmhooks.wording import printable

CSI: Final = re.compile(r"(?:\x1b\[|\x9b)[0-?]{0,32}[ -/]{0,4}[@-~]")
"""Parameters, intermediates and a final character."""

LONGEST: Final = 2 + 32 + 4

BEGUN: Final = re.compile(r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]{0,32}[ -/]{0,4})\Z")
"""The possible beginning of one: it is kept until more comes."""

RETURN: Final = re.compile(r"\r+\n?")
"""The end of a line; alone it would have the next text written over what stands there."""


class Harmless(io.RawIOBase):
    """Writes to ``out`` what can be seen of what it is given, however that was cut in pieces."""

    def __init__(self, out: Any) -> None:
        super().__init__()
        self._out = out
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""

    def write(self, data: Any) -> int:  # a Buffer, which Python 3.11 has no name for
        """Pass on the text of ``data``."""
        text = CSI.sub("", self._begun + self._decoder.decode(bytes(data)))
        whole = text.rstrip("\r")
        self._begun = "" if whole == text else "\r"  # perhaps the next is its line feed
        if not self._begun and (begun := BEGUN.search(text[-LONGEST:])):
            self._begun = begun.group()
            whole = text[: -len(self._begun)]
        self._out.write(printable(RETURN.sub("\n", whole)).encode())
        return len(data)

    def flush(self) -> None:
        """Flush what is below."""
        self._out.flush()
