"""The control groups of a host.

(Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst; where systemd mounts them:
systemd's docs/CGROUP_DELEGATION.md.) The misc controller counts keys for encrypted guests
(kernel/cgroup/misc.c): ``sev`` and ``sev_es`` are AMD's ASIDs, ``tdx`` Intel's HKIDs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

from kvmhooks.host.files.formats import split_words
from kvmhooks.host.resources import Cgroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_SLICE: Final = re.compile(r"[A-Za-z0-9_.:@\\-]{1,240}\.slice", re.ASCII)
_GROUP: Final = re.compile(r"[A-Za-z0-9_.:@\\-]{1,255}", re.ASCII)
_COUNTED: Final = re.compile(r"[a-z0-9_]{1,32}", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_MOUNTS_LIMIT: Final = 4 << 20
_V1: Final = frozenset(
    {
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
        "misc",
    }
)


@frozen
class Mount:
    """One mounted hierarchy."""

    path: str
    version: int
    controllers: tuple[str, ...]
    """Of version 1."""


def read_cgroup(tree: Tree) -> Cgroup | None:
    """Read what is mounted; None where the tree does not tell."""
    mounts = parse_mounts(list(tree.lines("proc/mounts", limit=_MOUNTS_LIMIT)))
    systemd = _is_systemd(tree)
    if not mounts:
        return None if systemd is None else Cgroup(systemd=systemd)
    unified = next((mount for mount in mounts if mount.version == 2), None)
    legacy = tuple(sorted({name for mount in mounts for name in mount.controllers}))
    enabled: dict[str, tuple[str, ...]] | None = None
    slices: tuple[str, ...] | None = None
    own: tuple[str, ...] = ()
    misc: dict[str, int] | None = None
    used: dict[str, int] | None = None
    directory = tree.directory(unified.path) if unified is not None else None
    if directory is not None:
        with directory:
            own = _words(directory, "cgroup.controllers")
            slices = tuple(directory.names(_SLICE))
            enabled = _read_enabled(directory, slices)
            misc, used = _read_misc(directory)
    counting = next((mount for mount in mounts if "misc" in mount.controllers), None)
    directory = None if counting is None else tree.directory(counting.path)
    if directory is not None:
        with directory:
            misc, used = _read_misc(directory)
    return Cgroup(
        version=1 if legacy else 2,
        controllers=legacy or own,
        mode=_mode(unified, legacy),
        enabled=enabled,
        systemd=systemd,
        slices=slices,
        misc=misc,
        misc_used=used,
    )


def parse_mounts(lines: Sequence[str]) -> tuple[Mount, ...]:
    """Find the hierarchies among the lines of ``/proc/mounts``."""
    found = []
    for line in lines:
        words = split_words(line)
        if len(words) < 4 or words[2] not in {"cgroup", "cgroup2"}:
            continue
        path = words[1].lstrip("/")
        if words[2] == "cgroup2":
            found.append(Mount(path, 2, ()))
        else:
            controllers = tuple(option for option in words[3].split(",") if option in _V1)
            found.append(Mount(path, 1, controllers))
    return tuple(found)


def _mode(unified: Mount | None, legacy: Sequence[str]) -> str:
    if not legacy:
        return "unified"
    return "legacy" if unified is None else "hybrid"


def _read_enabled(root: Directory, slices: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the controllers that the children of the root and of each slice have."""
    enabled = {"/": _words(root, "cgroup.subtree_control")}
    for name in slices:
        directory = root.child(name)
        if directory is not None:
            with directory:
                enabled[f"/{name}"] = _words(directory, "cgroup.subtree_control")
    return enabled


def _read_misc(root: Directory) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """Return the host's number of each thing that the misc controller counts, and those in use.

    The root tells of the latter since Linux 6.5 («cgroup/misc: Expose misc.current on cgroup v2
    root»); before, the groups in it do, each for all that is below it.
    """
    capacity = _counts(root.text("misc.capacity"))
    if capacity is None:
        return None, None
    used = _counts(root.text("misc.current"))
    if used is not None:
        return capacity, used
    groups = [_counts(group.text("misc.current")) for group in root.folders(_GROUP)]
    known = [group for group in groups if group is not None]
    if not known:
        return capacity, None
    return capacity, {name: sum(group.get(name, 0) for group in known) for name in capacity}


def _counts(text: str | None) -> dict[str, int] | None:
    """Return the numbers of a flat-keyed file such as ``sev 10``; None without one."""
    if text is None:
        return None
    lines = [split_words(line) for line in text.split("\n")]
    return {
        words[0]: int(words[1])
        for words in lines
        if len(words) == 2 and _COUNTED.fullmatch(words[0]) and _COUNT.fullmatch(words[1])
    }


def _words(directory: Directory, name: str) -> tuple[str, ...]:
    return tuple(split_words(directory.text(name) or ""))


def _is_systemd(tree: Tree) -> bool | None:
    """Tell whether systemd is the init: it then has ``/run/systemd/system`` (sd_booted(3))."""
    if not tree.has("run"):
        return None
    return tree.has("run/systemd/system")
