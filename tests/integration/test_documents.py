"""Manual pages and completions: as they are made, and as man(1) and the shells take them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvm_launch.commands.main import VERBS as LAUNCH_VERBS
from kvmhooks.cli.main import VERBS
from tests.integration.components import Launcher, eventually
from tests.integration.test_launch_verbs import shown, verb

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "man").iterdir())

COMPLETE = """
set -f; source "$1"; PATH="$2:$PATH"
COMP_WORDS=("${@:3}"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"
[[ $3 = kvmhooks ]] && _shtab_kvmhooks || _shtab_kvm_launch
printf '%s\\n' "${COMPREPLY[@]}"
"""


def ran(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=60
    )


def completed(*words: str) -> set[str]:
    """Return bash's offers for the last word."""
    script = DOCS / "completion" / words[0]
    done = ran("bash", "-c", COMPLETE, "-", script, Path(sys.executable).parent, *words)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


def test_what_stands_there_is_what_is_made() -> None:
    """The parsers and the schema are the only source."""
    done = ran(sys.executable, DOCS / "build.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("word", "code", "message"), [("--help", 0, "usage: docs/build.py"), ("--chek", 2, "--chek")]
)
def test_only_without_a_word_they_are_written(word: str, code: int, message: str) -> None:
    """Help that is asked for, or a mistyped word: it is said, and nothing made."""
    before = [page.stat().st_mtime_ns for page in PAGES]
    done = ran(sys.executable, DOCS / "build.py", word)
    assert (done.returncode, message in done.stdout + done.stderr) == (code, True)
    assert [page.stat().st_mtime_ns for page in PAGES] == before


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_good_roff(page: Path) -> None:
    """No warning of groff, and every verb and table is in it."""
    done = ran("groff", "-man", "-Tutf8", "-ww", "-z", page)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = page.read_text().replace("\\-", "-")
    known = {
        "kvmhooks.1": [f".SS kvmhooks {name}\n" for name in VERBS],
        "kvm-launch.1": [f".SS kvm-launch {name}\n" for name in LAUNCH_VERBS],
        "vm.toml.5": [".SH [cpu]\n", ".SH [[disk]]\n", ".SH [tuning.io]\n", "\\fBvcpus = "],
    }
    assert [name for name in known[page.name] if name not in text] == []


@pytest.mark.parametrize(
    ("shell", "script"),
    [("bash", "kvmhooks"), ("bash", "kvm-launch"), ("zsh", "_kvmhooks"), ("zsh", "_kvm-launch"),
     ("fish", "kvmhooks.fish"), ("fish", "kvm-launch.fish")],
)  # fmt: skip
def test_a_script_is_the_shells(shell: str, script: str) -> None:
    """Each shell parses its own."""
    done = ran(shell, "-n", DOCS / "completion" / script)
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes_verbs_options_and_values() -> None:
    """Of both commands."""
    assert completed("kvmhooks", "") >= set(VERBS)
    assert completed("kvmhooks", "tune", "--ke") == {"--keep-pins"}
    assert completed("kvmhooks", "hooks", "st") == {"status"}
    assert completed("kvm-launch", "--de") == {"--detach"}
    assert completed("kvm-launch", "re") == {"reload"}
    assert completed("kvm-launch", "--accel", "") == {"auto", "kvm", "tcg"}


def test_names_are_those_that_the_command_tells(launcher: Launcher, tmp_path: Path) -> None:
    """The first column of ps, but for its heading."""
    process = launcher.start(launcher.vm("one", top="machine.accel = 'tcg'"))
    eventually(lambda: shown(launcher) == {"one": "running"})
    listed = verb(launcher, "ps").stdout
    (tmp_path / "kvm-launch").write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    (tmp_path / "kvm-launch").chmod(0o755)
    names = ran("bash", "-c", f'PATH="{tmp_path}:$PATH"; source "$0"; _kvm_launch_names ""',
                DOCS / "completion/kvm-launch")  # fmt: skip
    assert (names.stdout, names.stderr) == ("one\n", "")
    assert json.loads(verb(launcher, "ps", "--json").stdout)[0]["name"] == "one"
    verb(launcher, "stop", "--now", "one")
    process.communicate(timeout=60)
