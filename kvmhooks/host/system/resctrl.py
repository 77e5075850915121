"""Cache and memory bandwidth allocation: ``/sys/fs/resctrl``.

(Documentation/filesystems/resctrl.rst.) The file system is there once it is mounted; nothing is
mounted here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.files.formats import split_lines, split_words
from kvmhooks.host.resources import BandwidthAllocation, CacheAllocation, Resctrl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_RESCTRL: Final = "sys/fs/resctrl"
_CACHE: Final = re.compile(r"L([2-4])(?:CODE|DATA)?", re.ASCII)
_RESOURCE: Final = re.compile(r"L[2-4](?:CODE|DATA)?|MB", re.ASCII)
_GROUP: Final = re.compile(r"[^/]{1,255}")
_NOT_GROUPS: Final = frozenset({"info", "mon_groups", "mon_data"})
_HEX: Final = re.compile(r"[0-9a-f]{1,16}", re.ASCII)
_LINE: Final = re.compile(r"\s*(\w+):(\S+)", re.ASCII)
_PAIR: Final = re.compile(r"(\d{1,9})=([0-9a-f]{1,16})", re.ASCII)


def read_resctrl(tree: Tree) -> Resctrl | None:
    """Read resctrl; None where the kernel has no such thing."""
    directory = tree.directory(_RESCTRL)
    if directory is None:
        return None
    with directory:
        info = directory.child("info")
        if info is None:
            return Resctrl(mounted=False)
        schemata = parse_schemata(directory.text("schemata") or "")
        groups = tuple(name for name in directory.names(_GROUP) if _is_group(directory, name))
        with info:
            caches = _read_caches(info, schemata)
            bandwidth = _read_bandwidth(info, schemata)
            monitoring = info.tree.text(f"{_RESCTRL}/info/L3_MON/mon_features")
    classes = [cache.classes for cache in caches]
    classes += [bandwidth.classes] if bandwidth is not None else []
    counts = [count for count in classes if count is not None]
    return Resctrl(
        mounted=True,
        caches=caches,
        cdp=any(cache.resource.endswith("CODE") for cache in caches),
        bandwidth=bandwidth,
        monitoring=tuple(split_words(monitoring or "")),
        groups=groups,
        # The kernel takes the smallest number for all resources; the default group has one class.
        free_classes=max(min(counts) - 1 - len(groups), 0) if counts else None,
    )


def parse_schemata(text: str) -> dict[str, dict[int, str]]:
    """Read lines such as ``L3:0=fffff;1=fffff``: the value of each domain of each resource."""
    lines = (match for line in split_lines(text) if (match := _LINE.fullmatch(line.rstrip())))
    return {
        line[1]: {int(number): value for number, value in _PAIR.findall(line[2])} for line in lines
    }


def _is_group(directory: Directory, name: str) -> bool:
    if name in _NOT_GROUPS:
        return False
    group = directory.child(name)
    if group is None:
        return False
    with group:
        return bool(group.names(re.compile("schemata")))


def _read_caches(
    info: Directory, schemata: Mapping[str, Mapping[int, str]]
) -> tuple[CacheAllocation, ...]:
    caches = []
    for name in info.names(_RESOURCE):
        level = _CACHE.fullmatch(name)
        directory = info.child(name) if level is not None else None
        if level is None or directory is None:
            continue
        with directory:
            mask = _hex(directory, "cbm_mask")
            caches.append(
                CacheAllocation(
                    resource=name,
                    level=int(level[1]),
                    mask=mask,
                    ways=None if mask is None else mask.bit_count(),
                    min_bits=directory.integer("min_cbm_bits"),
                    classes=directory.integer("num_closids"),
                    shareable=_hex(directory, "shareable_bits"),
                    domains=_domains(schemata.get(name), 16),
                )
            )
    return tuple(caches)


def _read_bandwidth(
    info: Directory, schemata: Mapping[str, Mapping[int, str]]
) -> BandwidthAllocation | None:
    directory = info.child("MB")
    if directory is None:
        return None
    with directory:
        return BandwidthAllocation(
            classes=directory.integer("num_closids"),
            minimum=directory.integer("min_bandwidth"),
            step=directory.integer("bandwidth_gran"),
            domains=_domains(schemata.get("MB"), 10),
        )


def _domains(words: Mapping[int, str] | None, base: int) -> dict[int, int] | None:
    if words is None or not all(value.isdecimal() or base == 16 for value in words.values()):
        return None
    return {number: int(value, base) for number, value in words.items()}


def _hex(directory: Directory, name: str) -> int | None:
    text = directory.text(name)
    if text is None:
        return None
    if _HEX.fullmatch(text):
        return int(text, 16)
    directory.warn(name, f"found {text[:40]!r}, expected a hex mask")
    return None
