"""The host's own use of its disks: mounts, swap, and what stacks upon them.

``/proc/PID/mountinfo`` and ``/proc/swaps`` are of proc(5); ``holders`` of a block device lists what
the kernel has stacked on it (device mapper, md, bcache). A Btrfs file system mounts with a device
number of its own, and lists its disks below ``/sys/fs/btrfs``.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final

from kvmhooks.devices.uses import Use
from kvmhooks.host.files.formats import split_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.host.files.directory import Directory
    from kvmhooks.host.files.tree import Tree

_BLOCK: Final = "sys/block"
_BTRFS: Final = "sys/fs/btrfs"
_MOUNTS: Final = "proc/self/mountinfo"
_SWAPS: Final = "proc/swaps"
_NAME: Final = re.compile(r"[A-Za-z0-9!_.:-]{1,128}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_LIMIT: Final = 4 << 20
_DEEPEST: Final = 32
"""Layers of what stacks on a disk: the kernel refuses a device mapper's table long before."""
_MOST: Final = 1024
"""The number of layers on one disk that are looked at: one that carries so much is in use."""
_SHOWN: Final = 3
"""Mount points of one device that are named; containers have hundreds."""


def read_disk_uses(tree: Tree) -> dict[str, tuple[Use, ...]]:
    """Return the uses of each block device that is no partition, those of all that stacks on it."""
    disks = _Disks(tree)
    return {name: uses for name in disks.whole if (uses := tuple(disks.uses_of(name)))}


class _Disks:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.whole: dict[str, tuple[str, ...]] = {}
        """Each block device with its partitions."""
        self.holders: dict[str, tuple[str, ...]] = {}
        self.numbers: dict[str, str] = {}
        """``major:minor`` to the name."""
        self._links: dict[str, str | None] = {}
        directory = tree.directory(_BLOCK)
        if directory is not None:
            with directory:
                for name in directory.names(_NAME):
                    self._read_disk(directory, name)
        self.names = {*self.holders, *self.numbers.values()}
        self.btrfs = self._read_btrfs()
        self.mounts = self._read_mounts()
        self.swaps = self._read_swaps()

    def _read_disk(self, block: Directory, name: str) -> None:
        disk = block.child(name)
        if disk is None:
            return
        with disk:
            parts = tuple(part for part in disk.names(_NAME) if part.startswith(name))
            self.whole[name] = parts
            self._read_device(disk, name)
            for part in parts:
                below = disk.child(part)
                if below is not None:
                    with below:
                        self._read_device(below, part)

    def _read_device(self, device: Directory, name: str) -> None:
        number = device.text("dev")
        if number is not None:
            self.numbers[number] = name
        holders = device.child("holders")
        if holders is not None:
            with holders:
                self.holders[name] = tuple(holders.names(_NAME))

    def _read_mounts(self) -> dict[str, list[str]]:
        """Return the mount points of each device."""
        mounts: dict[str, list[str]] = {}
        for line in self.tree.lines(_MOUNTS, _LIMIT):
            words = line.split(" ")
            if len(words) < 10 or "-" not in words:
                continue
            source = words[words.index("-") + 2]
            name = self.numbers.get(words[2]) or self._name_of(source)
            for member in self.btrfs.get(name, [name]) if name is not None else ():
                mounts.setdefault(member, []).append(_plain(words[4]))
        return mounts

    def _read_btrfs(self) -> dict[str, list[str]]:
        """Return all devices of the Btrfs that a device is of, by its name."""
        found: dict[str, list[str]] = {}
        directory = self.tree.directory(_BTRFS)
        if directory is None:
            return found
        with directory:
            for uuid in directory.names(_UUID):
                devices = self.tree.directory(f"{_BTRFS}/{uuid}/devices")
                if devices is None:
                    continue
                with devices:
                    names = devices.names(_NAME)
                for name in names:
                    found.setdefault(name, names)
        return found

    def _read_swaps(self) -> set[str]:
        lines = list(self.tree.lines(_SWAPS, _LIMIT))[1:]
        names = (self._name_of(split_words(line)[0]) for line in lines if line)
        return {name for name in names if name is not None}

    def _name_of(self, path: str) -> str | None:
        """Return the kernel's name of a device that is given by its path in ``/dev``."""
        path = _plain(path)
        if not path.startswith("/dev/"):
            return None
        name = path.removeprefix("/dev/").replace("/", "!")
        if name in self.names:
            return name
        if path not in self._links:  # a thousand mounts may be of one device
            self._links[path] = self._link_of(path)
        return self._links[path]

    def _link_of(self, path: str) -> str | None:
        folder, _, name = path.lstrip("/").rpartition("/")
        directory = self.tree.directory(folder)
        if directory is None:
            return None
        with directory:
            return directory.link_name(name)

    def uses_of(self, disk: str) -> Iterator[Use]:
        """Yield every use of a disk, of its partitions, and of what stacks on them."""
        found = False
        for name in (disk, *self.whole[disk]):
            for used, through in self._stack(name):
                for use in self._own(used, through):
                    found = True
                    yield use
        if not found and self.tree.is_live:
            yield from _exclusive(disk, self.whole[disk])

    def _stack(self, disk: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Give what is on a disk, and what that is on: each once, by the way that comes first."""
        seen: set[str] = set()
        todo: list[tuple[str, tuple[str, ...]]] = [(disk, ())]
        while todo:
            name, through = todo.pop()
            if name in seen or len(through) > _DEEPEST or len(seen) > _MOST:
                continue
            seen.add(name)
            yield name, through
            above = (*through, name)
            for holder in reversed(self.holders.get(name, ())):
                todo += [(part, above) for part in reversed(self.whole.get(holder, ()))]
                todo.append((holder, above))

    def _own(self, name: str, through: tuple[str, ...]) -> Iterator[Use]:
        under = f" (it is on {', on '.join(reversed(through))})" if through else ""
        places = self.mounts.get(name, ())
        if places:
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            where = ", ".join(places[:_SHOWN])
            yield Use("mounted", name, f"is mounted at {where}{more}{under}", f"/{_MOUNTS}")
        if name in self.swaps:
            yield Use("swap", name, f"is swapped to{under}", f"/{_SWAPS}")
        holders = self.holders.get(name, ())
        if holders:
            at = f"/sys/class/block/{name}/holders"
            yield Use("held", name, f"carries {', '.join(holders)}{under}", at)


def _exclusive(disk: str, parts: tuple[str, ...]) -> Iterator[Use]:
    """Yield a use if somebody holds it exclusively.

    open(2): ``O_EXCL`` without ``O_CREAT`` fails with EBUSY on a block device that the system uses.
    """
    for name in (disk, *parts):
        path = "/dev/" + name.replace("!", "/")
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                what = "is held exclusively, as the disks of an imported pool are"
                yield Use("held", name, what, f"{path}: {error.strerror}")


def _plain(text: str) -> str:
    """Return a path as it is; the kernel writes white space in octal."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
