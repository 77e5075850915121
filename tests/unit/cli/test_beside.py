"""Options that would do nothing beside others: each row of the table is refused by its verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.cli.beside import HOLLOW
from kvmhooks.cli.main import main

DOMAIN = Path(__file__).parents[2] / "golden" / "domains" / "web.xml"
REFUSED = {
    "host --unredacted": "--unredacted: found no --capture, expected one",
    "host --svg - --json": "--json: found --svg - beside it, expected one document",
    "hooks status --python /usr/bin/python3": "--python: found it beside status, expected install",
    "hooks uninstall --python /usr/bin/python3": "--python: found it beside uninstall",
    "hooks install --force": "--force: found it beside install, expected uninstall",
    "install-units --packaged --remove": "--packaged: found --remove beside it",
    "install-units --packaged --user": "--packaged: found --user beside it",
    "install-units --remove --programs /usr/bin": "--programs: found --remove beside it",
    "isolate vm --print --connect qemu:///session": "--connect: found --print beside it",
    "plan ./vm.toml --svg - --json": "--json: found --svg - beside it",
    "replan - --connect qemu:///session": "--connect: found - beside it, expected a running VM's",
    "replan - --dry-run": "--dry-run: found - beside it",
    "replan - --json": "--json: found - beside it",
    "tune ./vm.xml --repin --keep-pins": "--repin: found --keep-pins beside it",
    "tune ./vm.xml --only disks --keep-pins": "--keep-pins: found --only disks beside it, expected",
    "tune ./vm.xml --only memory --keep-pins": "--keep-pins: found --only memory beside it",
    "tune ./vm.xml --only disks --repin": "--repin: found --only disks beside it, expected cpu or",
    "tune ./vm.xml --only disks --profile web": "--profile: found --only disks beside it, expected",
    "tune ./vm.xml --only profile": "--only: found profile without --profile, expected both",
    "tune ./vm.xml --only disks,profile": "--only: found profile without --profile",
    "tune ./vm.xml --connect qemu:///session": "--connect: found the file ./vm.xml beside it",
    "tune vm --apply --host /captured": "--apply: found --host beside it, expected this machine",
}


@pytest.mark.parametrize("words", REFUSED)
def test_an_option_that_does_nothing_is_refused(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With itself, what is beside it and what was expected, before anything is read."""
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith(REFUSED[words])) == ("", 1, True), err


def test_each_row_has_its_refusal() -> None:
    """None of the table is without an example here."""
    tried = {(words.split()[0], told.partition(":")[0]) for words, told in REFUSED.items()}
    rows = {
        (verb, f"--{option.replace('_', '-')}")
        for verb, rules in HOLLOW.items()
        for option, _, _ in rules
    }
    assert tried == rows


@pytest.mark.parametrize(
    "words",
    ["--only cpu --keep-pins", "--only memory --repin", "--only profile --profile web", "--diff"],
)
def test_what_changes_something_is_taken(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same options where they have their effect."""
    assert main(["tune", str(DOMAIN), *words.split()]) == 0
    assert capsys.readouterr().err.count("\n") >= 1
