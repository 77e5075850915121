"""The tuned domain as people are shown it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from kvmhooks.host import Host, read
from kvmhooks.libvirt.edit.difference import HIDDEN, hide, unified
from kvmhooks.libvirt.tuning.tune import tune
from tests.fakehost import LARGE_SERVER, write_host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host on which every domain fits."""
    return read(write_host(tmp_path_factory.mktemp("host"), **LARGE_SERVER))


def test_the_diff_makes_one_text_of_the_other(domain_file: Path, host: Host) -> None:
    """Applied to the domain it gives the tuned one, and it is no longer than difflib's."""
    pieces = tune(domain_file.read_bytes(), host).pieces
    before, after = (hide("".join(text)).splitlines() for text in zip(*pieces, strict=True))
    lines = unified(pieces, "x").splitlines()
    assert applied(lines, before) == after
    assert len(lines) <= len(list(difflib.unified_diff(before, after)))


def applied(diff: list[str], lines: list[str]) -> list[str]:
    """Return what ``patch`` makes of the lines, each of which must be as the diff says."""
    made: list[str] = []
    at = 0
    for line in diff[2:]:
        hunk = re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line)
        if hunk is not None:
            start = int(hunk[1]) - (hunk[2] != "0")
            made += lines[at:start]
            at = start
        elif line[0] == "+":
            made.append(line[1:])
        else:
            assert lines[at] == line[1:]
            made += lines[at : at + 1] if line[0] == " " else []
            at += 1
    return made + lines[at:]


@pytest.mark.parametrize(
    ("pieces", "diff"),
    [
        ([("a\n", "a\n")], ""),
        ([("a\n", "a\n"), ("", "b\n")], "--- x\n+++ x (tuned)\n@@ -1 +1,2 @@\n a\n+b\n"),
        ([("", "b\n"), ("a", "a")], "--- x\n+++ x (tuned)\n@@ -1 +1,2 @@\n+b\n a\n"),
        ([("a", "b")], "--- x\n+++ x (tuned)\n@@ -1 +1 @@\n-a\n+b\n"),
        (
            [("a\nb", "a\nb"), ("", " c"), ("\nd\n", "\nd\n")],
            "--- x\n+++ x (tuned)\n@@ -1,3 +1,3 @@\n a\n-b\n+b c\n d\n",
        ),
    ],
)
def test_a_diff_is_as_diff_writes_it(pieces: list[tuple[str, str]], diff: str) -> None:
    """Lines before and after with three around them, counted from 1."""
    assert unified(pieces, "x") == diff


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<graphics passwd='a\nb'/>", f"<graphics passwd='{HIDDEN}\n{HIDDEN}'/>"),
        (
            "-----BEGIN KEY-----\nA-B\n-----END KEY-----",
            f"-----BEGIN KEY-----{HIDDEN}\n{HIDDEN}\n{HIDDEN}-----END KEY-----",
        ),
        ("-----BEGIN KEY-----A", f"-----BEGIN KEY-----{HIDDEN}"),
        ("<q:arg a='>' value='b'/>", f"<q:arg a='>' value='{HIDDEN}'/>"),
        ('<q-1:env name="a" value="b"/>', f'<q-1:env name="a" value="{HIDDEN}"/>'),
        ("<arg/>value='b'", "<arg/>value='b'"),
    ],
)
def test_what_is_secret_is_hidden(text: str, shown: str) -> None:
    """It is hidden wherever it ends, and the text has as many lines as before."""
    assert hide(text) == shown
