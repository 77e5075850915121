"""Hosts made up by chance: as tar files, and as trees. Seeded; more of them with ``--slow``."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from kvmhooks.devices.judgement import judge
from kvmhooks.devices.reading import read_uses
from kvmhooks.errors import HostError
from kvmhooks.host import read, to_json
from kvmhooks.host.capture import CaptureRecorder
from kvmhooks.host.files.archive import Folder, read_archive
from kvmhooks.host.files.packed import PackedTree
from kvmhooks.host.files.redact import Redactor
from kvmhooks.host.picture import picture
from kvmhooks.host.read import read_tree
from tests.fakehost import write_host
from tests.laws.test_host import RICH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED = int(os.environ.get("KVMHOOKS_SEED", "17"))
NAMES = [
    "sys", "proc", "host", "version", "cmdline", "kvmhooks-flaws", "devices", "cpu0", "..", ".",
    "", "/", "a\0b", "\udcff", "n" * 300, "é" * 99, "\x1b[2J", "x\ny",
]  # fmt: skip
TARGETS = ["/", "/etc/passwd", "../" * 40, ".", "", "version", "sys", "l" * 5000, "/proc/self/root"]
TYPES = [b"0", b"2", b"5", b"0", b"0", b"2", b"2", b"3", b"6", b"7", b"\0", b"1", b"S", b"Z", b"D"]
COMPRESSIONS: list[Callable[[bytes], bytes]] = [
    bytes, bytes, bytes, lambda data: gzip.compress(data, 1), lambda data: bz2.compress(data, 1),
    lambda data: lzma.compress(data, preset=0), lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
]  # fmt: skip
CONTENTS = [
    b"", b"-1\n", b"0-9999999999\n", b"9" * 5000, b"\xff\xfe\0", b"0000ffff", b"(null)", b"\n" * 99,
    "\u2028\u00b2\u0661 \x85".encode(), b"cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", b"1", b"0-3",
    b"a\rb\x0bc\x1cd", b"1 " * 300, b"/" * 5000, b"x" * 70_000, b"12 1 8:0 / / rw - ext4 /dev/a rw",
]  # fmt: skip


def seeded() -> random.Random:
    """Make chance that is the same each time."""
    return random.Random(SEED)  # noqa: S311 -- nothing is to be kept secret


def archives(chance: random.Random) -> Iterator[bytes]:
    """Make up tar files: of entries that lie, damaged afterwards, compressed, cut off."""
    while True:
        made = io.BytesIO()
        form = chance.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        with tarfile.open(fileobj=made, mode="w", format=form, errors="surrogateescape") as archive:
            for _ in range(chance.randrange(12)):
                _add(archive, chance)
        data = made.getvalue()
        for _ in range(chance.choice([0, 0, 1, 3])):
            data = _damaged(data, chance)
        data = chance.choice(COMPRESSIONS)(data)
        for _ in range(chance.choice([0, 0, 0, 1])):
            data = _damaged(data, chance)
        yield data


def _add(archive: tarfile.TarFile, chance: random.Random) -> None:
    names = [chance.choice(["sys", "proc"]), f"a{chance.randrange(99)}"]
    if chance.random() < 0.2:
        names = chance.choices(NAMES, k=chance.randrange(1, 5))
    entry = tarfile.TarInfo("/".join(names))
    entry.type = chance.choice(TYPES[: chance.choice([3, 11, 15])])
    entry.linkname = chance.choice(TARGETS + NAMES)
    content = chance.choice(CONTENTS)
    entry.size = len(content) if entry.type in {b"0", b"7", b"\0"} else chance.choice([0, 0, 9])
    if archive.format == tarfile.PAX_FORMAT and chance.random() < 0.1:
        key = chance.choice(["size", "path", "linkpath", "GNU.sparse.major", "comment", "x" * 2000])
        entry.pax_headers = {key: chance.choice(["", "1", "-1", "9" * 30, *TARGETS[:4]])}
    archive.addfile(entry, io.BytesIO(content.ljust(entry.size)))


def _damaged(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    at = chance.randrange(len(data))
    kind = chance.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + data[at : at + 512] + data[at:]
    block = at - at % 512  # a header whose sum is right, whatever it says
    header = bytearray(data[block : block + 512].ljust(512, b"\0"))
    field = chance.choice([slice(0, 100), slice(124, 136), slice(156, 157), slice(257, 263)])
    header[field] = bytes(chance.choice(b"01789xLK\xff\x80 ") for _ in range(512)[field])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:block] + bytes(header) + data[block + 512 :]


def check_archives(folder: Path, count: int) -> Counter[str]:
    """Read so many; each is a host, or refused with one line that can be shown."""
    file = folder / "sent.tar"
    ends: Counter[str] = Counter()
    for data in islice(archives(seeded()), count):
        file.write_bytes(data)
        begun = time.monotonic()
        try:
            host = read(file)
            ends["read"] += 1
            json.dumps(to_json(host))
            assert all(line.isprintable() for line in host.warnings)
            assert "root:x:0" not in str(host)
        except HostError as error:
            message = str(error).removeprefix(f"{file}: ")
            assert message.isprintable(), message
            ends["no host" if "no host" in message else "refused"] += 1
        assert time.monotonic() - begun < 5, f"{len(data)} bytes took {time.monotonic() - begun} s"
    assert [path.name for path in folder.iterdir()] == ["sent.tar"]
    return ends


def check_trees(top: Folder, count: int) -> Counter[str]:
    """Damage a rich host in so many ways; it is read, judged, drawn, written and captured."""
    chance = seeded()
    ends: Counter[str] = Counter()
    for _ in range(count):
        damaged: Any = _copied(top)
        for _ in range(chance.choice([1, 2, 5, 20])):
            ends[_damage(damaged, chance)] += 1
        recorder = CaptureRecorder(Redactor()) if chance.random() < 0.3 else None
        if not {"sys", "proc"} & damaged.keys():
            continue
        tree = PackedTree(damaged, "sent.tar", recorder)
        host = read_tree(tree)
        judge(host, read_uses(tree))
        assert picture(host).encode()
        assert json.dumps(to_json(host))
        assert all(line.isprintable() for line in host.warnings)
        if recorder is not None:
            ends["captured"] += len(list(recorder.entries())) > 0
    return ends


def _copied(folder: Folder) -> Folder:
    return {
        name: _copied(node) if isinstance(node, dict) else node for name, node in folder.items()
    }


def _damage(top: Folder, chance: random.Random) -> str:
    """Do one thing to one place, most often where something is, and tell what."""
    folder: Any = top
    while True:
        if not folder:
            return "nothing"
        name = chance.choice(list(folder))
        if not isinstance(folder[name], dict) or chance.random() < 0.05:
            break
        folder = folder[name]
    kind = chance.choice(list(DAMAGES))
    DAMAGES[kind](folder, name, chance)
    return kind


def _content(folder: Any, name: str, chance: random.Random) -> None:
    folder[name] = chance.choice(CONTENTS)


def _cut(folder: Any, name: str, chance: random.Random) -> None:
    node = folder[name] if isinstance(folder[name], bytes) else b""
    at = chance.randrange(len(node) + 1)
    folder[name] = node[:at] + chance.choice(CONTENTS)[:99] + node[at + 1 :]


def _directory(folder: Any, name: str, chance: random.Random) -> None:
    folder[name] = {chance.choice(NAMES[:8]): b""}


def _link(folder: Any, name: str, chance: random.Random) -> None:
    folder[name] = chance.choice([*TARGETS, name, f"../{name}", "..", "/sys", "/sys/devices"])


def _gone(folder: Any, name: str, _: random.Random) -> None:
    del folder[name]


def _more(folder: Any, name: str, chance: random.Random) -> None:
    number = str(chance.choice([0, 1, 3, 63, 9999, 99999, 10**9]))
    more = name.rstrip("0123456789") + number if chance.random() < 0.7 else chance.choice(NAMES)
    if more and "/" not in more and "\0" not in more:
        folder[more] = folder[name]


def _moved(folder: Any, name: str, chance: random.Random) -> None:
    folder[chance.choice(list(folder))] = folder[name]


DAMAGES: dict[str, Callable[[Any, str, random.Random], None]] = {
    "content": _content,
    "cut": _cut,
    "directory": _directory,
    "link": _link,
    "gone": _gone,
    "more": _more,
    "moved": _moved,
}
"""Things that are done to one name in a folder."""


def _tell(request: pytest.FixtureRequest, what: str, ends: Counter[str]) -> None:
    """Print the counts, captured or not."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n{what}, seed {SEED}:", ", ".join(f"{n} {end}" for end, n in sorted(ends.items())))


@pytest.fixture(scope="module")
def rich_top(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The rich host of the laws, from a tar file."""
    folder = tmp_path_factory.mktemp("rich")
    with tarfile.open(folder / "rich.tar", "w") as archive:
        archive.add(write_host(folder / "host", **RICH), ".")
    return read_archive(folder / "rich.tar")


def test_any_archive_is_a_host_or_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Any tar file is one host or one message, in time, and nothing is written."""
    _tell(request, "archives", check_archives(tmp_path, 1200))


def test_any_tree_is_read(rich_top: Folder, request: pytest.FixtureRequest) -> None:
    """Any captured tree is read: a useless file is unknown, and there is no traceback."""
    _tell(request, "damages to trees", check_trees(rich_top, 120))


@pytest.mark.slow
def test_more_archives_are_hosts_or_refused(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same for minutes."""
    _tell(request, "archives", check_archives(tmp_path, 60_000))


@pytest.mark.slow
def test_more_trees_are_read(rich_top: Folder, request: pytest.FixtureRequest) -> None:
    """The same for minutes."""
    _tell(request, "damages to trees", check_trees(rich_top, 6_000))
