"""The kernel's texts for sets of CPUs, lists and hex masks, as integers with a bit for each.

The libvirt hook uses them for every value that it reads: see ``kvmhooks.values``.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MAX_CPU: Final = 65_535
"""The highest CPU or node number that is parsed.

The kernel's own limit is 8,192 (``CONFIG_NR_CPUS`` of x86 with ``MAXSMP``, arch/x86/Kconfig); a
bound is needed at all because one hostile range (``0-9999999999``) would otherwise fill the memory.
"""

DIGITS: Final = "0123456789"
HEX: Final = DIGITS + "abcdefABCDEF"
_LIST_EXPECTED: Final = 'a CPU list such as "0-3,8"'
_MASK_EXPECTED: Final = 'a hex mask in groups of 8 digits such as "ff,00000003"'


def bits_of_list(text: str) -> int:
    """Read a list: the kernel's (``0-3,8``, ``0-31:2/4``) or libvirt's (``0-7,^2``).

    The kernel's format is that of ``bitmap_parselist()`` (lib/bitmap-str.c): ranges may be
    followed by ``:used/group``. libvirt's is that of ``virBitmapParse()``
    (src/util/virbitmap.c): items are taken from left to right and ``^N`` takes one away. The
    empty text is the empty set. Raises ``ValueFormatError``.
    """
    mask = 0
    stripped = text.strip().rstrip("\0").strip()
    for item in stripped.split(",") if stripped else ():
        mask = _apply_item(mask, item.strip(), text)
    return mask


def bits_of_mask(text: str) -> int:
    """Read a hex mask as the kernel writes it: ``ff`` or ``00000001,00000003``.

    Groups are 32 bits wide, the highest first (``bitmap_parse()`` in lib/bitmap-str.c); a
    leading ``0x`` as in libvirt and ``taskset`` is allowed when there is one group. Raises
    ``ValueFormatError``.
    """
    stripped = text.strip().rstrip("\0").strip()
    if stripped[:2] in {"0x", "0X"} and is_made_of(HEX, stripped[2:]):
        return int(stripped, 0)
    groups = stripped.split(",")
    if not all(is_made_of(HEX, group, at_most=8) for group in groups):
        raise ValueFormatError(text, _MASK_EXPECTED)
    mask = 0
    for group in groups:
        mask = mask << 32 | int(group, 16)
    return mask


def _apply_item(mask: int, item: str, text: str) -> int:
    """Add one item of a list (``4``, ``0-3``, ``0-31:2/4``, ``^2``) to a mask, or take it out."""
    first, dash, rest = item.removeprefix("^").partition("-")
    last, colon, stride = rest.partition(":")
    numbers = [first, last] if dash else [first]
    if not all(is_made_of(DIGITS, number, at_most=6) for number in numbers):
        raise ValueFormatError(text, _LIST_EXPECTED)
    low, high = int(first), int(numbers[-1])
    is_exclusion = item.startswith("^")
    if high < low or high > MAX_CPU or (is_exclusion and dash):
        raise ValueFormatError(text, _LIST_EXPECTED)
    if is_exclusion:
        return mask & ~(1 << low)
    if not colon:
        return mask | (1 << high + 1) - (1 << low)
    return mask | _strided(low, high, stride, text)


def _strided(low: int, high: int, stride: str, text: str) -> int:
    """Return the first ``used`` of every ``group`` CPUs, for ``used/group``."""
    words = stride.split("/")
    if len(words) != 2 or not all(is_made_of(DIGITS, word, at_most=6) for word in words):
        raise ValueFormatError(text, _LIST_EXPECTED)
    used, group = map(int, words)
    if not 0 < used <= group:
        raise ValueFormatError(text, 'a stride such as "0-31:2/4": 2 of every 4')
    mask, length, wanted = (1 << used) - 1, group, high + 1 - low
    while length < wanted:  # doubled each time: to set group after group would be quadratic
        mask |= mask << length
        length *= 2
    return (mask & ((1 << wanted) - 1)) << low


def is_made_of(characters: str, text: str, at_most: int = 1 << 20) -> bool:
    """Return whether a text is not empty, not too long, and has no other characters."""
    return 0 < len(text) <= at_most and not text.strip(characters)
