"""Every verb that asks libvirt, and a URI at which nobody answers: one code, one message."""

from __future__ import annotations

import argparse
import signal
from importlib import import_module
from pathlib import Path

import pytest

from kvm_launch.commands import main as kvm_launch
from kvm_launch.commands.main import parser_of as parser_of_kvm_launch
from kvmhooks.cli.main import VERBS, main
from kvmhooks.exits import CODES
from kvmhooks.signals import SIGNALS

pytest.importorskip("libvirt")

ASKING = (
    "isolate web",
    "replan web",
    "replan web --dry-run",
    "tune web",
    "tune web --check",
    "tune web --apply",
)
"""The words of kvmhooks that ask a libvirt."""

VM = 'name = "a"\ncpu = {vcpus = 1}\nmemory = {size = "64MiB"}\n[machine]\naccel = "tcg"\n'
OPTIONS = {"--connect", "--libvirt"}
FAILED = next(code for code, name, _ in CODES if name == "failed")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options that take a URI."""
    actions = (action for action in parser._actions if action.metavar == "URI")
    return {option for action in actions for option in action.option_strings}


def test_every_verb_with_a_uri_is_in_the_table() -> None:
    """Found by its parser: one that is added is held to the law."""
    found = {
        verb for verb, known in VERBS.items()
        if options_of(import_module(known[0]).parser_of(verb))
    }  # fmt: skip
    assert found == {words.partition(" ")[0] for words in ASKING}
    assert options_of(parser_of_kvm_launch()) == {"--libvirt"}


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A socket that is not there, in a directory with a VM."""
    (tmp_path / "vm.toml").write_text(VM)
    monkeypatch.chdir(tmp_path)
    return f"qemu+unix:///system?socket={tmp_path}/none"


@pytest.mark.parametrize("words", ASKING)
def test_a_libvirt_that_does_not_answer_is_3(
    uri: str, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """It has failed; nothing is printed, and the message begins with its URI."""
    assert main([*words.split(), "--connect", uri]) == FAILED
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = [line for line in told.err.splitlines() if not line.startswith("warning: ")]
    assert line.startswith(f"libvirt: {uri}: ")


@pytest.mark.parametrize("words", ["", "--dry-run"])
def test_so_for_kvm_launch(uri: str, capfd: pytest.CaptureFixture[str], words: str) -> None:
    """It asks before anything is made."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        code = kvm_launch.main([f"--libvirt={uri}", "vm.toml", *words.split()])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = capfd.readouterr()
    assert (code, told.out) == (FAILED, "")
    assert f"libvirt: {uri}: " in told.err
    assert told.err.count(uri) == 1


@pytest.mark.parametrize("words", ASKING)
def test_a_domain_that_is_not_there_is_1(capsys: pytest.CaptureFixture[str], words: str) -> None:
    """libvirt answers, with its driver for tests: nothing was changed."""
    assert main([*words.split(), "--connect", "test:///default"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "web" in told.err
