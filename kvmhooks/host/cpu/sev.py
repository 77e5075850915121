"""The encryption of guests' memory by an AMD processor: leaf 0x8000001F of CPUID.

(AMD64 manual, volume 3, E.4.17.) It is asked of the cpuid driver (cpuid(4)), by the same
instruction with which QEMU checks ``cbitpos`` (``sev_get_capabilities()``, target/i386/sev.c).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from kvmhooks.errors import words_of
from kvmhooks.host.files.formats import split_words
from kvmhooks.host.system.system import Sev

if TYPE_CHECKING:
    from kvmhooks.host.files.tree import Tree

DEVICE: Final = "dev/cpu/0/cpuid"
_HIGHEST: Final = 0x80000000
_LEAF: Final = 0x8000001F
_REGISTERS: Final = struct.Struct("<4I")
_MOST: Final = 1 << 32


def read_sev(tree: Tree) -> Sev | None:
    """Read what the processor tells; None where it has no SEV, or nobody may ask it."""
    text = _asked(tree) if tree.is_live else tree.text(DEVICE) or ""
    if text and tree.is_live and tree.recorder is not None:
        tree.recorder.saw_text(DEVICE, text)
    words = split_words(text)
    if len(words) != 5 or words[0] != f"{_LEAF:x}":
        return None
    try:
        eax, ebx, ecx, edx = (int(word, 16) for word in words[1:])
    except ValueError:
        return None
    if not eax & 1 << 1 or max(eax, ebx, ecx, edx) >= _MOST:
        return None
    # sev_hardware_setup(), arch/x86/kvm/svm/sev.c: ASIDs from edx on are for guests without -es.
    return Sev(cbitpos=ebx & 0x3F, asids=max(ecx - max(edx, 1) + 1, 0), es_asids=max(edx - 1, 0))


def _asked(tree: Tree) -> str:
    """Ask this machine's driver: the leaf and its registers in hex, or nothing.

    The driver need not be loaded, and only root may ask it: both are usual, and no flaw.
    """
    try:
        device = os.open(f"/{DEVICE}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if _REGISTERS.unpack(os.pread(device, _REGISTERS.size, _HIGHEST))[0] < _LEAF:
            return ""  # Intel's processors answer with another leaf
        registers = _REGISTERS.unpack(os.pread(device, _REGISTERS.size, _LEAF))
    except (OSError, struct.error) as error:
        tree.unread(DEVICE, f"cannot be read: {words_of(error)}")
        return ""
    finally:
        os.close(device)
    return " ".join(f"{word:x}" for word in (_LEAF, *registers))
