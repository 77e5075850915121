"""The listening of a helper, told by the kernel of the very file, whatever names others give."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_launch.spawn import listening
from kvm_launch.spawn.listening import listens


@pytest.fixture
def path() -> Iterator[Path]:
    """Give a path for a helper's socket: short enough for it, and for a line in another's name."""
    found = Path(f"/tmp/kvmhooks-{secrets.token_hex(4)}")
    yield found
    found.unlink(missing_ok=True)


def line_of(path: Path) -> bytes:
    """Return what ``/proc/net/unix`` says of a socket that listens at a path."""
    return b"0000000000000000: 00000002 00000000 00010000 0001 01 12345 " + bytes(path)


def test_it_listens_once_it_does_and_is_not_connected_to(path: Path) -> None:
    """Neither a file that is no socket, nor one that is only bound, nor one that nobody holds."""
    assert not listens(path)
    path.touch()
    assert not listens(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as helper:
        helper.bind(str(path))
        assert not listens(path)
        helper.listen(1)
        assert listens(path)
        helper.setblocking(False)
        with pytest.raises(BlockingIOError):
            helper.accept()
    assert not listens(path)


@pytest.mark.parametrize("way", ["asked of sock_diag", "read from a table"])
@pytest.mark.parametrize(
    "name", [b"\0x\n%s", b"\0x\n%s\ny", b"\0x\ny 1 2 zz 4 5 6 %s", b"\0\xff\x85\n"]
)
def test_no_name_of_another_socket_is_taken_for_it(path: Path, name: bytes, way: str) -> None:
    """Any user may give an abstract socket a name with a whole line of the table in it."""
    spoof = name.replace(b"%s", line_of(path) if b"zz" not in name else bytes(path))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(spoof)
        other.listen(1)
        found = [listens(path)]
        path.touch()
        found.append(listens(path))
        path.unlink()
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(path))  # it is there, and nobody holds it any more
        found.append(listens(path) if way.startswith("asked") else listening._is_bound(path))
    assert found == [False] * 3


def test_another_ones_socket_of_the_same_path_is_none(path: Path, tmp_path: Path) -> None:
    """The path is the same, and the file another one, as in a mount namespace of its own."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as ours:
        other.bind(str(path))
        other.listen(1)
        path.rename(tmp_path / "elsewhere")
        ours.bind(str(path))
        assert not listens(path)
        assert listens(tmp_path / "elsewhere")


def test_a_kernel_without_sock_diag_is_asked_otherwise(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is bound to the file, and by its name in a table where `\\n` alone ends a line."""

    def refuse() -> Iterator[tuple[int, int]]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(listening, "_listening", refuse)
    assert not listens(path)
    with socket.socket(socket.AF_UNIX) as helper, socket.socket(socket.AF_UNIX) as odd:
        odd.bind(b"\0\xff\x0b\x85\n: x")
        helper.bind(str(path))
        assert not listens(path)
        helper.listen(1)
        assert listens(path)


def test_a_path_with_blanks_at_its_end_is_found(path: Path) -> None:
    """They are a part of the name."""
    odd = path.with_name(f"{path.name} \x0b\u2028 ")
    with socket.socket(socket.AF_UNIX) as helper:
        helper.bind(os.fsencode(odd))
        helper.listen(1)
        assert listens(odd)
        assert listening._is_in(listening.SOCKETS, os.fsencode(odd))
        assert not listens(path)
    odd.unlink()
