"""The processor, as ``/proc/cpuinfo`` describes the first CPU.

(Documentation/filesystems/proc.rst; the flags are those of arch/x86/include/asm/cpufeatures.h and
vmxfeatures.h.) Only the first CPU's part is read: with 1,024 CPUs the file has megabytes of it.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Final

from attrs import evolve

from kvmhooks.host.cpu.sev import read_sev
from kvmhooks.host.files.formats import split_words
from kvmhooks.host.system.system import Processor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvmhooks.host.files.tree import Tree

_PATH: Final = "proc/cpuinfo"
_LIMIT: Final = 64 * 1024


def read_processor(tree: Tree) -> Processor | None:
    """Read the first CPU; None where the tree does not describe it."""
    processor = parse_processor(takewhile(bool, tree.lines(_PATH, limit=_LIMIT)))
    processor = evolve(processor, sev=read_sev(tree))
    return None if processor == Processor() else processor


def parse_processor(lines: Iterable[str]) -> Processor:
    """Read the lines of one CPU."""
    values = {
        name.strip(" \t"): value.strip(" \t")
        for name, _, value in (line.partition(":") for line in lines)
    }
    return Processor(
        vendor=values.get("vendor_id"),
        model_name=values.get("model name"),
        family=_integer(values.get("cpu family")),
        model=_integer(values.get("model")),
        stepping=_integer(values.get("stepping")),
        microcode=values.get("microcode"),
        flags=_words(values.get("flags")),
        vmx_flags=_words(values.get("vmx flags")),
    )


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(split_words(text))


def _integer(text: str | None) -> int | None:
    try:
        return None if text is None else int(text[:20])
    except ValueError:
        return None
