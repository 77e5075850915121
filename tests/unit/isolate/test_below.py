"""The system of a tree leads nowhere else, and opens no device."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmhooks.cli.main import main
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.system.system import System
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant

NAMES = st.sampled_from(["a", "b", "c", ".", "..", ""])
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
"""Relative ones, and absolute ones where the first name is empty."""

ONLINE = "sys/devices/system/cpu/online"
SECRET = "4711"  # noqa: S105 -- none

CALLS: dict[str, Callable[[System, str], object]] = {
    "read": System.read,
    "lines": System.lines,
    "administrators": System.administrators,
    "hold": System.hold,
    "write": lambda system, path: system.write(path, "x"),
    "replace": lambda system, path: system.replace(path, "x"),
    "names": System.names,
    "directories": System.directories,
    "inodes": System.inodes,
    "crowded": lambda system, path: system.crowded("", [path]),
    "has": System.has,
    "make_directory": System.make_directory,
    "unlink": System.unlink,
    "remove_empty": System.remove_empty,
    "is_socket": System.is_socket,
    "ask": lambda system, path: system.ask(path, "x", 1),
    "link": System.link,
}
"""Each method that is given a path."""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the tree, with all that somebody could want of it."""
    path = tmp_path / "outside"
    (path / "empty").mkdir(parents=True)
    (path / "directory/below").mkdir(parents=True)
    (path / "file").write_text(SECRET)
    return path


def _state(of: Path) -> dict[str, str]:
    return {str(path): path.read_text() if path.is_file() else "" for path in sorted(of.rglob("*"))}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["file", "empty", "directory", "new"])
@pytest.mark.parametrize("way", ["by the last part", "by a part above"])
def test_no_link_leads_out_of_the_tree(
    tmp_path: Path, outside: Path, call: str, name: str, way: str
) -> None:
    """By no method is anything beside the tree told or changed."""
    root = tmp_path / "root"
    root.mkdir()
    before = _state(outside)
    if way == "by the last part":
        (root / "link").symlink_to(outside / name)
        path = "link"
    else:
        (root / "link").symlink_to(f"../{'../' * 40}{str(outside)[1:]}")
        path = f"link/{name}"
    try:
        told = CALLS[call](System(str(root)), path)
    except (OSError, IsolationError) as error:
        told = error
    assert SECRET not in repr(told)
    assert _state(outside) == before
    is_link = call == "link" and way == "by the last part"
    assert is_link or isinstance(told, Exception) or not told


@pytest.mark.parametrize("call", ["read", "lines", "administrators", "hold", "write", "replace"])
@pytest.mark.parametrize("kind", ["FIFO", "device", "link to a device"])
def test_nothing_but_a_file_of_a_tree_is_opened(tmp_path: Path, call: str, kind: str) -> None:
    """A watchdog starts when it is opened, and a FIFO has who opens it wait."""
    if kind == "FIFO":
        os.mkfifo(tmp_path / "a")
    else:
        name = "a" if kind == "device" else "b"
        try:
            os.mknod(tmp_path / name, 0o600 | 0o020000, os.makedev(1, 7))  # /dev/full
        except PermissionError:
            pytest.skip("no device can be made here")
        if name == "b":
            (tmp_path / "a").symlink_to("/b")
    with pytest.raises((OSError, IsolationError)) as caught:
        CALLS[call](System(str(tmp_path)), "a")
    is_kept = kind == "link to a device" and call in {"administrators", "hold", "write"}
    reason = os.strerror(errno.ELOOP) if is_kept else "is no regular file"
    assert reason in str(caught.value)


def test_a_socket_of_a_tree_is_reached(tmp_path: Path) -> None:
    """Also by a link that leads to it when the tree is taken for the whole."""
    (tmp_path / "link").symlink_to("/real")
    where = os.open(tmp_path, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            (tmp_path / "dev").mkdir()
            (tmp_path / "dev/log").symlink_to("/link")
            peer.bind(f"/proc/self/fd/{where}/real")
            system = System(f"/proc/self/fd/{where}")
            assert system.is_socket("real")
            system.log("heard")
            peer.setblocking(False)
            assert peer.recv(100).endswith(b"heard")
    finally:
        os.close(where)


@given(st.dictionaries(st.sampled_from("abc"), st.none() | PATHS), PATHS, PATHS)
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_tree_is_as_if_it_were_the_whole(
    tmp_path: Path, links: dict[str, str | None], below: str, path: str
) -> None:
    """Each path leads to where it would after ``chroot(2)``, or nowhere, whatever its links are."""
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, target in links.items():
        if target is None:
            (root / name).mkdir()
            (root / name / "a").symlink_to(below or ".")
        else:
            (root / name).symlink_to(target or ".")
    system = System(str(root))
    expected = _in_chroot(root, path)
    try:
        found = Path(system.at(path)).stat().st_ino
    except OSError:
        found = None
    assert found == expected
    assert system.has(path) == (expected is not None)


def _in_chroot(root: Path, path: str) -> int | None:
    """The inode of a path, one step at a time by the rules of path_resolution(7)."""
    way, todo, links = [root], [part for part in path.split("/") if part], 0
    while todo:
        name = todo.pop(0)
        if name == "..":
            way = way[:-1] or [root]
        elif name != ".":
            at = way[-1] / name
            if at.is_symlink():
                target = str(at.readlink())
                links += 1
                if links > 40:
                    return None
                way = [root] if target.startswith("/") else way
                todo = [part for part in target.split("/") if part] + todo
            elif at.exists():
                way = [*way, at]
            else:
                return None
    return way[-1].stat().st_ino


@pytest.mark.parametrize("verb", ["status", "reconcile", "replan", "undo"])
def test_no_verb_tells_what_a_link_leads_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    """The list of CPUs that are online is a link to a secret beside the tree."""
    root = tmp_path / "root"
    root.mkdir()
    plant(Kernel("partitions", cpus=8, irqs=2), root)
    (tmp_path / "secret").write_text("hidden words\n")
    (root / ONLINE).unlink()
    (root / ONLINE).symlink_to(tmp_path / "secret")
    words = ["--all"] if verb == "undo" else ["a"] if verb == "replan" else []
    main([verb, "--root", str(root), *words])
    output = capfd.readouterr()
    assert "hidden" not in output.out + output.err
