"""``kvmhooks host``: parses, calls, prints."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from kvmhooks.cli.main import main
from kvmhooks.host import read, to_json
from kvmhooks.host.picture import picture
from tests.fakehost import write_host

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_host(tmp_path / "root", threads=2)


def test_a_captured_host_is_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text is the default."""
    assert main(["host", "--root", str(root)]) == 0
    assert capsys.readouterr() == (picture(read(root)), "")


def test_json_is_the_contract(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON is that of ``to_json``, and the programs, which a captured tree has not."""
    assert main(["host", "--root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **json.loads(json.dumps(to_json(read(root)))),
        "programs": None,
    }


def test_a_capture_is_shown_as_the_host_was(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Captured to a tar file, then shown from it."""
    file = str(tmp_path / "host.tar.xz")
    assert main(["host", "--root", str(root), "--capture", file]) == 0
    assert capsys.readouterr() == ("", f"{file}: captured\n")
    assert main(["host", "--root", file]) == 0
    assert capsys.readouterr().out == picture(read(root))


def test_a_drawing_goes_to_a_file_or_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-`` is standard output."""
    assert main(["host", "--root", str(root), "--svg", str(tmp_path / "host.svg")]) == 0
    assert main(["host", "--root", str(root), "--svg", "-"]) == 0
    drawn = capsys.readouterr().out
    assert drawn.startswith("<svg ")
    assert (tmp_path / "host.svg").read_text() == drawn


def test_a_drawing_is_written_through_no_link(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor into a FIFO or a device; a file that is there is replaced, and nothing else is left."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.svg").symlink_to(victim)
    (folder / "dangling.svg").symlink_to(tmp_path / "made")
    os.mkfifo(folder / "fifo.svg")
    for name, found in (("link", "a link"), ("dangling", "a link"), ("fifo", "no regular file")):
        file = folder / f"{name}.svg"
        assert main(["host", "--root", str(root), "--svg", str(file)]) == 1
        message = f"{file}: cannot be written: found {found}, expected a file or nothing\n"
        assert capsys.readouterr() == ("", message)
    (folder / "hard.svg").hardlink_to(victim)
    assert main(["host", "--root", str(root), "--svg", str(folder / "hard.svg")]) == 0
    assert (folder / "hard.svg").read_text().startswith("<svg ")
    assert victim.read_text() == "mine"
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "dangling.svg", "fifo.svg", "hard.svg", "link.svg",
    ]  # fmt: skip
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("verb", ["host", "devices"])
def test_json_is_written_at_once(root: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each of its tokens: what is printed is looked through for control characters."""
    written: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", SimpleNamespace(write=written.append, flush=lambda: None))
        assert main([verb, "--root", str(root), "--json"]) == 0
    assert json.loads("".join(written)) is not None
    assert len(written) <= 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--root", "/nowhere"], 1, "/nowhere: cannot be read: No such file or directory\n"),
        (["--root", "ROOT", "--svg", "/nowhere/x.svg"], 1, "cannot be written: No such file"),
        (["--root", "ROOT", "--capture", "ROOT"], 1, "is not empty"),
    ],
)
def test_what_cannot_be_done_is_one_message(
    root: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the place and the reason, nothing on standard output."""
    assert main(["host", *(word.replace("ROOT", str(root)) for word in words)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
