"""The output of a command: without control characters, and no failure is lost."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.exits import exit_code_of
from kvmhooks.output import document
from kvmhooks.wording import printable

PROGRAM = "import sys; from kvmhooks.cli.main import main; sys.exit(main())"
ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;title\x07\x7f\x9b31m\u202e\udcff[bold]"


def run(*words: str, closed: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run kvmhooks with its outputs redirected as a shell says."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", PROGRAM, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    """But for lines and tabs; what can be seen stays; what is printable already stays as it is."""
    text_shown = printable(text)
    kinds = {unicodedata.category(char) for char in text_shown if char not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(text_shown) == text_shown
    assert text_shown.count("\n") == text.count("\n")
    if text.isprintable():
        assert text_shown == text


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_printable_json_says_the_same(value: object) -> None:
    """DEL, too, is an escape of JSON's."""
    assert json.loads(printable(json.dumps(value, indent=1))) == value


def say(text: str) -> int:
    """Print it both ways."""
    print(text)
    print(text, file=sys.stderr)
    return 0


def test_text_reaches_nobody_with_its_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """A log is looked at in a terminal later, whoever reads it."""
    assert exit_code_of(lambda: say(EVIL), interrupted="") == 0
    message = "\\u001b]0;title\\u0007\\u007f\\u009b31m\\u202e\\udcff[bold]\n"
    assert capsys.readouterr() == (message, message)


def test_a_document_is_printed_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """To a file or a pipe: byte by byte, after what was said before."""

    def tell() -> int:
        print("first")
        document("\x9b\udcff")
        document(b"\x1b\xff")
        return 0

    assert exit_code_of(tell, interrupted="") == 0
    assert capfdbinary.readouterr().out == b"first\n\xc2\x9b\xff\x1b\xff"


def test_a_terminal_obeys_no_document() -> None:
    """It does not obey a domain's XML that `kvmhooks` prints."""
    ours, theirs = pty.openpty()
    text = "from kvmhooks.output import document; document(b'<a>\\xc2\\x9b31m\\x1b</a>')"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, stdout=theirs, check=True, timeout=60)
    os.close(theirs)
    assert os.read(ours, 100) == b"<a>\\u009b31m\\u001b</a>"
    os.close(ours)


@pytest.mark.parametrize("words", [["schema"], ["profiles"], ["--help"], ["plan", "--help"]])
@pytest.mark.parametrize(
    ("closed", "output"),
    [
        (">/dev/full", b"standard output: No space left on device\n"),
        (">&-", b"standard output: Bad file descriptor\n"),
        (">/dev/full 2>/dev/full", b""),
        (">/dev/full 2>&-", b""),
    ],
)
def test_what_cannot_be_printed_is_one_error(words: list[str], closed: str, output: bytes) -> None:
    """Exit code 1; never a traceback, whatever is left to tell it by."""
    ran = run(*words, closed=closed)
    assert (ran.returncode, ran.stderr) == (1, output)


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-"])
def test_an_error_that_nobody_hears_keeps_its_code(tmp_path: Path, closed: str) -> None:
    """And nothing of it is on standard output instead."""
    ran = run("plan", "--bad", closed=closed)
    assert (ran.returncode, ran.stdout) == (2, b"")
    ran = run("plan", str(tmp_path / "none.toml"), closed=closed)
    assert (ran.returncode, ran.stdout) == (1, b"")


def test_a_note_comes_at_once() -> None:
    """A line on standard error is not kept until the end."""
    program = "from kvmhooks.exits import exit_code_of as run; import sys, os\n"
    program += "run(lambda: print('now', file=sys.stderr) or os._exit(0), interrupted='')"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    assert ran.stderr == b"now\n"


def test_who_reads_no_further_ends_it_quietly() -> None:
    """It ends as any program in a pipe does."""
    words: Sequence[str] = [sys.executable, "-c", PROGRAM, "schema"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(words, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_an_encoding_without_a_character_is_no_traceback() -> None:
    """It is shown as its escape."""
    program = (
        "from kvmhooks.exits import exit_code_of as run; run(lambda: print('«'), interrupted='')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"\\xab\n", b"")
