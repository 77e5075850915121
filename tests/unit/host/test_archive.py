"""Tar files that somebody sent: read as they are, in memory, or refused with one message."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from kvmhooks.devices import list_devices
from kvmhooks.errors import HostError
from kvmhooks.host import read
from kvmhooks.host.files.archive import Growing, read_archive
from kvmhooks.host.files.tar import DIRECTORY, FILE, Entry, TarError
from tests.fakedevices import FakePci
from tests.fakehost import write_host

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VERSION = ("proc/version", b"Linux version 6.1")


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """Make an entry without content."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def tar(*entries: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar file of entries, and of files that are given with their content."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as archive:
        for member in entries:
            if isinstance(member, tuple):
                name, content = member
                file = entry(name)
                file.size = len(content)
                archive.addfile(file, io.BytesIO(content))
            else:
                archive.addfile(member)
    return made.getvalue()


def block(name: bytes, kind: bytes = b"0", size: bytes = b"0", target: bytes = b"") -> bytes:
    """Make one header, as whoever made it pleased."""
    made = bytearray(512)
    made[: len(name)] = name
    made[124 : 124 + len(size)] = size
    made[156:157] = kind
    made[157 : 157 + len(target)] = target
    made[257:265] = b"ustar\x0000"
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def padded(content: bytes) -> bytes:
    """Fill up the last block."""
    return content + bytes(-len(content) % 512)


END = bytes(1024)


def refused(tmp_path: Path, content: bytes) -> str:
    """Return the one message with which a tar file is refused, after its name."""
    file = tmp_path / "sent.tar"
    file.write_bytes(content)
    with pytest.raises(HostError) as caught:
        read(file)
    return str(caught.value).removeprefix(f"{file}: ")


LINK, HARD, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE
LONG = tar(("proc/version", bytes(range(256)) * 99), ("proc/x", os.urandom(9999)))
NEGATIVE = b"\xff" * 12
"""-1 in GNU's base 256."""
NO_TAR = "no tar file of a host: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(entry("sys", LINK, "/tmp"), entry("sys/x", LINK, "/x"), VERSION),
         "found 'sys/x' below a link, expected a directory there"),
        (tar(entry("sys", LINK, "/tmp"), ("sys/a/b", b""), VERSION),
         "found 'sys/a/b' below a link, expected a directory there"),
        (tar(("sys/x", b""), entry("sys", LINK, "/tmp"), VERSION),
         "found 'sys' as a directory and as a link, expected one of them"),
        (tar(VERSION, ("proc/version/x", b"")),
         "found 'proc/version/x' below a file, expected a directory there"),
        (tar(VERSION, entry("proc/version", LINK, "/etc/passwd")),
         "found 'proc/version' as a file and as a link, expected one of them"),
        (tar(VERSION, entry("proc/version", DIR)),
         "found 'proc/version/' as a file and as a directory, expected one of them"),
        (tar(("../x", b"")), "found '../x', which leads out of it"),
        (tar(("proc/../../x", b"")), "found 'proc/../../x', which leads out of it"),
        (tar(VERSION, entry("proc/x", HARD, "/etc/passwd")),
         "found 'proc/x' as a hard link to '/etc/passwd', expected a file that came before"),
        (tar(VERSION, entry("proc/x", HARD, "../proc/version")),
         "found '../proc/version', which leads out of it"),
        (tar(("proc/" + "n" * 256, b"")),
         f"found 'proc/{'n' * 72}...', which is no path of a host"),
        (tar(("d/" * 64 + "x", b"")), f"found '{'d/' * 38}d...', which is no path of a host"),
        (tar(entry("proc/x", LINK, "l" * 4096)), "found 'proc/x', a link to no path of a host"),
        (block(b"proc/x", b"x", b"20") + padded(b"16 path=proc/\0x\n") + block(b"n") + END,
         "found 'proc/\\x00x', which is no path of a host"),
        (block(b"L", b"L", b"30000000000") + END,
         "found a header of 3221225472 bytes, which no host's file needs"),
        (block(b"x", b"x", b"\x80" + b"\0" * 3 + b"\xff" * 8) + END,
         f"found a header of {2**64 - 1} bytes, which no host's file needs"),
        (block(b"x", b"x", b"10") + padded(b"9 size=-1") + block(b"n") + END,
         "found a damaged pax header"),
        (block(b"x", b"x", b"13") + padded(b"11 size=-1\n") + block(b"n") + END,
         "found a size of '-1', expected a number of bytes"),
        (block(b"x", b"x", b"13") + padded(b"0 path=x.y\n") + block(b"n") + END,
         "found a damaged pax header"),
        (block(b"x", b"x", b"13") + padded(b"99 path=xy\n") + block(b"n") + END,
         "found a damaged pax header"),
        (block(b"proc/x", b"0", NEGATIVE) + END,
         f"found {NEGATIVE!r} in a header, expected a number in octal"),
        (block(b"proc/x", b"0", b"-00000000001") + END,
         "found b'-00000000001' in a header, expected a number in octal"),
        (block(b"proc/x", b"0", b"10000000000") + END,
         "found files of more bytes than any host has"),
        (block(b"proc/x", b"S") + END,
         "found a sparse file, expected plain ones: pack it without --sparse"),
        (tar(VERSION)[:-10240][:600],
         "found its end too early, expected more of it: it is not whole"),
        (tar(VERSION)[:1024], "found its end too early, expected more of it: it is not whole"),
        (b"", "found its end too early, expected more of it: it is not whole"),
        (b"text" * 256, "found b'texttext' in a header, expected a number in octal"),
        (b"1" * 1024, "found a header whose sum is wrong, expected one of a tar file"),
        (gzip.compress(LONG)[:-1000],
         "Compressed file ended before the end-of-stream marker was reached"),
        (bz2.compress(LONG)[:-1000],
         "Compressed file ended before the end-of-stream marker was reached"),
        (lzma.compress(LONG)[:-1000],
         "Compressed file ended before the end-of-stream marker was reached"),
        (b"\x1f\x8b" + b"no gzip " * 99, "Unknown compression method"),
        (b"BZh" + b"no bzip2", "Invalid data stream"),
        (b"\xfd7zXZ\0" + b"no xz " * 99, "Corrupt input data"),
    ],
)  # fmt: skip
def test_what_is_no_whole_and_honest_tar_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """With one message that says what was found, before anything else is done."""
    assert refused(tmp_path, content) == NO_TAR + message


@pytest.mark.parametrize(
    "content",
    [
        tar(entry("host", LINK, "/")),
        tar(entry("host", LINK, "/"), ("host", b""))[:512] + END,
        tar(entry("sys", LINK, "/sys"), entry("proc", LINK, "/proc")),
        tar(("sys", b""), entry("proc/x", tarfile.FIFOTYPE)),
        tar(("a/b/proc/version", b"")),
    ],
)
def test_a_tar_file_without_a_tree_in_it_is_no_host(tmp_path: Path, content: bytes) -> None:
    """A link to this machine, or to its ``/sys`` and ``/proc``, is none."""
    assert refused(tmp_path, content) == "holds neither sys nor proc, so it is no host"


TREE: dict[str, Any] = {
    "sys": {"a" * 99: {"b" * 90: {"c" * 100: b"deep", "\u00e9\udcff": b"\0\1"}}, "l": "../proc/v"},
    "proc": {"v": b"x" * 1000, "empty": b"", "none": {}, "long": "/t" * 200},
}


def packed(tree: dict[str, Any], form: int) -> bytes:
    """Make a tar file of a tree."""
    found: list[tarfile.TarInfo | tuple[str, bytes]] = []

    def add(folder: dict[str, Any], above: str) -> None:
        for name, node in folder.items():
            if isinstance(node, dict):
                found.append(entry(above + name, DIR))
                add(node, f"{above}{name}/")
            else:
                plain = isinstance(node, bytes)
                found.append((above + name, node) if plain else entry(above + name, LINK, node))

    add(tree, "")
    return tar(*found, form=form)


@pytest.mark.parametrize("below", ["", "host/", "./"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reading_inverts_packing(
    tmp_path: Path, form: int, compress: Callable[[bytes], bytes], below: str
) -> None:
    """Long names and targets, in both forms that have them, and whatever compressed it."""
    tree = {below[:-1]: TREE} if below == "host/" else TREE
    (tmp_path / "sent").write_bytes(compress(packed(tree, form)))
    assert read_archive(tmp_path / "sent") == TREE


def test_what_is_said_twice_is_as_it_was_said_last(tmp_path: Path) -> None:
    """``tar --append`` has it so; a hard link is what it is another name of."""
    content = tar(
        ("proc/version", b"old"),
        VERSION,
        entry("proc/same", HARD, "./proc/version"),
        entry("proc", DIR),
        entry("proc/link", LINK, "a"),
        entry("proc/link", LINK, "b"),
        entry("dev/zero", tarfile.CHRTYPE),
        entry("proc/fifo", tarfile.FIFOTYPE),
    )
    (tmp_path / "sent").write_bytes(content)
    assert read_archive(tmp_path / "sent") == {
        "proc": {"version": VERSION[1], "same": VERSION[1], "link": "b"}
    }


def test_a_packed_host_is_the_host(tmp_path: Path) -> None:
    """It is one as a directory and as a tar file, its links within it; its devices too."""
    root = write_host(
        tmp_path / "host",
        cores=4,
        nodes=2,
        pci=(FakePci("0000:00:02.0", net=("eth0",)),),
        files={"proc/net/route": "Iface\teth0\neth0\t00000000\t0\t0\t0\t0\t0\t00000000\n"},
    )
    (root / "proc/version").symlink_to("/sys/version")
    (root / "sys/version").write_text("Linux version 6.1.0\n")
    with tarfile.open(tmp_path / "host.tar.gz", "w:gz") as archive:
        archive.add(root, ".")
    assert read(tmp_path / "host.tar.gz") == read(root)
    assert list_devices(tmp_path / "host.tar.gz") == list_devices(root)
    assert [device.device.net for device in list_devices(root)] == [("eth0",)]


WATCHED = """
import os, sys
def watch(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in {"os.mkdir", "os.symlink", "os.link", "os.rename", "os.chmod"}:
        sys.exit(f"{event} {arguments}")
from kvmhooks.devices import list_devices
from kvmhooks.host import read
sys.addaudithook(watch)
read(sys.argv[1])
list_devices(sys.argv[1])
"""


def test_reading_a_tar_file_writes_nothing(tmp_path: Path) -> None:
    """So that nothing is left behind, whatever signal comes, and nothing is made anywhere."""
    file = tmp_path / "host.tar"
    with tarfile.open(file, "w") as archive:
        archive.add(write_host(tmp_path / "host"), ".")
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCHED, file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
from kvmhooks.cli.main import main
sys.exit(main(["host", "--root", sys.argv[1]]))
"""


MIB = gzip.compress(bytes(1 << 20))
"""Of nothing; a gzip file is of as many members as one likes."""
LARGE_DICTIONARY = b"\x5d\0\0\0\x80" + lzma.compress(tar(VERSION), lzma.FORMAT_ALONE)[5:]
"""The header of .lzma has the dictionary's size in its bytes 1 to 4: 2 GiB."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(block(b"L", b"L", b"%o" % (400 << 20))) + MIB * 400,
         "found a header of 419430400 bytes, which no host's file needs"),
        (gzip.compress(block(b"x", b"x", b"2000000") + b"1" * 524288) + MIB * 9,
         "found a damaged pax header"),
        (LARGE_DICTIONARY, "Memory usage limit exceeded"),
        (gzip.compress(block(b"proc/x", b"0", b"%o" % (400 << 20))) + MIB * 400,
         "it needs more memory than there is"),
    ],
    ids=["long-name", "digits", "dictionary", "no-memory"],
)  # fmt: skip
def test_what_a_small_file_takes_is_bounded(tmp_path: Path, content: bytes, message: str) -> None:
    """Neither 300 MiB of memory nor twenty seconds, for half a MB that says that it is more."""
    file = tmp_path / "sent.tar.gz"
    file.write_bytes(content)
    assert file.stat().st_size < 1 << 19
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, file],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, f"{file}: {NO_TAR}{message}\n")


def test_an_lzma_file_of_several_streams_is_read_whole(tmp_path: Path) -> None:
    """xz makes and reads them so (xz(1), «DESCRIPTION»), wherever one ends."""
    content = packed(TREE, tarfile.GNU_FORMAT)
    streams = (content[:700], b"", content[700:5000], content[5000:])
    (tmp_path / "sent").write_bytes(b"".join(map(lzma.compress, streams)))
    assert read_archive(tmp_path / "sent") == TREE


def test_entries_of_one_name_are_counted_too() -> None:
    """Each takes its time, whether it makes anything or not."""
    for extra in (Entry(FILE, "proc/x", "", b""), Entry(DIRECTORY, ".", "", b"")):
        tree = Growing(limit=9)
        for _ in range(9):
            tree.add(extra)
        with pytest.raises(TarError, match="found more than 9 entries, which is no host"):
            tree.add(extra)


def test_a_fifo_in_the_place_of_a_tar_file_is_not_waited_for(tmp_path: Path) -> None:
    """Nor is one that cannot be opened an error that nobody understands."""
    os.mkfifo(tmp_path / "sent.tar")
    with pytest.raises(HostError, match=r"sent\.tar: found no regular file, expected a tar file"):
        read_archive(tmp_path / "sent.tar")
    with pytest.raises(HostError, match=r"sent\.tar: cannot be read: Not a directory"):
        read(tmp_path / "sent.tar")
    with pytest.raises(HostError, match=r"none\.tar: cannot be read: No such file or directory"):
        read_archive(tmp_path / "none.tar")
