"""Files that a person or an earlier run has left are read without waiting, and up to a bound."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvm_launch.tell.status import NAME, VmRecord, running
from kvmhooks import files
from kvmhooks.cli.documents import read_document
from kvmhooks.cli.main import main
from kvmhooks.cli.sources import read_holdings
from kvmhooks.errors import InputError, SpecError
from kvmhooks.kvm.verdict import MEMORY, recall
from kvmhooks.spec import load_vm

ROOT = Path(__file__).resolve().parents[2]


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(path))


ODD: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a directory": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": bound,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that a socket's path is short."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_told_at_once(folder: Path, kind: str) -> None:
    """A vm.toml, a domain's XML, claims: one message, and nothing that waits."""
    path = folder / "odd"
    ODD[kind](path)
    message = f"found {kind}, expected a regular file"
    with pytest.raises(files.IrregularError, match=message):
        files.read(path, 9)
    with pytest.raises(SpecError, match=f"^odd: {message}$"):
        load_vm(path)
    for reader in (read_document, read_holdings):
        with pytest.raises(InputError, match=f"^odd: {message}$"):
            reader("odd")


@pytest.mark.parametrize("verb", [["tune"], ["import"], ["simulate"], ["xml"], ["claim"]])
def test_a_verb_does_not_wait_for_a_fifo(
    folder: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what it found, and what it expected."""
    os.mkfifo(folder / "odd.xml")
    assert main([*verb, "odd.xml"]) == 1
    assert capsys.readouterr().err == "odd.xml: found a FIFO, expected a regular file\n"


@pytest.mark.parametrize("size", [1, 70_000])
def test_a_shells_pipe_is_as_good_as_a_file(folder: Path, size: int) -> None:
    """To its end, which may come later than its begin."""
    (folder / "a").write_bytes(b"x" * size)
    program = "import sys; from kvmhooks.cli.documents import read_document as read; "
    program += "print(len(read(sys.argv[1])))"
    script = '"$0" -c "$1" <(sleep 0.2; cat a; sleep 0.2; echo)'
    command = ["/bin/bash", "-c", script, sys.executable, program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.stderr) == (f"{size + 1}\n", "")


def test_a_pipe_without_an_end_is_not_waited_for(folder: Path) -> None:
    """Longer than is said; and of one that goes on for ever no more is read than from a file."""
    os.mkfifo(folder / "a")
    with (folder / "a").open("r+b", buffering=0) as writer:
        with pytest.raises(TimeoutError, match="does not come to its end"):
            files.read("a", 9, pipe_seconds=0.01)
        writer.write(b"0123456789abc")
        assert files.read("a", 9, pipe_seconds=0.01) == b"0123456789"


def test_three_gibibytes_of_nothing_are_not_read(folder: Path) -> None:
    """A sparse file, in the place of a description and of a document."""
    path = folder / "vm.toml"
    path.touch()
    os.truncate(path, 3 << 30)
    begun = time.process_time()
    with pytest.raises(SpecError, match="more than 1048576 bytes"):
        load_vm(path)
    assert len(read_document("vm.toml", 100)) == 101
    assert time.process_time() - begun < 1


def test_a_limit_is_told_by_one_more_byte(folder: Path) -> None:
    """Of a file that is just as long there is no more."""
    (folder / "a").write_bytes(b"abc")
    assert [files.read("a", limit) for limit in (0, 2, 3, 4)] == [b"a", b"abc", b"abc", b"abc"]


def test_another_users_file_and_a_link(folder: Path) -> None:
    """Refused where that is asked for."""
    (folder / "a").touch()
    (folder / "b").symlink_to("a")
    other = os.geteuid() + 1
    with pytest.raises(PermissionError, match=f"expected one of user {other}"):
        files.read("a", 9, owner=other)
    assert files.read("b", 9, owner=os.geteuid()) == b""
    with pytest.raises(files.IrregularError, match="found a link"):
        files.read("b", 9, follows=False)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 60_000, '{"name": "vm", "later": 1}', "\x00" * 9]
)
def test_a_record_that_is_none_is_passed_over(folder: Path, text: str) -> None:
    """One of another version is no record, nor is half of one; the VMs beside it are told."""
    for name in ("odd", "vm"):
        (folder / name).mkdir()
    (folder / "odd" / NAME).write_text(text.replace('"vm"', '"odd"'))
    mine = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    document = {"name": "vm", "source": "x", "supervisor": os.getpid(), "supervisor_start": mine}
    (folder / "vm" / NAME).write_text(json.dumps(document))
    assert [record.name for record in running(folder)] == ["vm"]
    assert [record for record in running(folder) if not isinstance(record, VmRecord)] == []


@pytest.mark.parametrize("kind", ODD)
def test_a_run_directory_that_holds_something_else(folder: Path, kind: str) -> None:
    """Neither a record nor a verdict is waited for."""
    (folder / "vm").mkdir()
    ODD[kind](folder / "vm" / NAME)
    ODD[kind](folder / MEMORY)
    assert list(running(folder)) == []
    assert recall(Path("/bin/sh"), folder) is None


def test_a_closed_standard_input_is_told() -> None:
    """Nothing comes from it."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" tune - <&-', "sh", sys.executable, "-m", "kvmhooks.cli.main"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    message = "-: found nothing on the standard input, expected a document\n"
    assert (done.returncode, done.stderr) == (1, message)
