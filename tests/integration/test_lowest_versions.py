"""The lowest versions that ``setup.cfg`` takes of each library are true."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.fakehost import LARGE_SERVER, write_host
from tests.integration.components import ROOT

HERE = Path(__file__).parent
GOLDEN = ROOT / "tests" / "golden"

WRONG = 'name = "a"\nnet = [{}, {type = 1}]\nhelper = [{command = ["/a", 2]}]\ncpu.vcpu = 1\n'
"""A mistake in each kind of place."""


def lowest() -> list[str]:
    """The lowest version of each library, but for libvirt's: that is built for the one here."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    lines = "\n".join(
        (config["options"]["install_requires"], extras["sriov"], extras["cloud-init"])
    )
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", line) for line in lines.split()]
    assert all(found)
    return [f"{each[1]}=={each[2]}" for each in found if each is not None]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with them, which is kept below ``build``."""
    key = hashlib.sha256("\n".join((sys.version, *lowest())).encode()).hexdigest()[:16]
    kept = ROOT / "build" / "lowest" / key
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=kept.parent))
        pip = [str(new / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        try:
            for command in (
                [sys.executable, "-m", "venv", str(new)],
                [*pip, "install", "--quiet", "--only-binary=:all:", *lowest()],
            ):
                subprocess.run(command, check=True)
            new.rename(kept)
        except OSError:
            if not kept.exists():  # another one was not quicker
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return kept / "bin" / "python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host, some VMs and domains, and a VM with mistakes."""
    made = tmp_path_factory.mktemp("paths")
    write_host(made / "host", **LARGE_SERVER)
    for name in ("disks", "network", "dedicated", "as_realtime"):
        shutil.copy(GOLDEN / "vms" / f"{name}.toml", made)
    for name in ("web", "cells"):
        shutil.copy(GOLDEN / "domains" / f"{name}.xml", made)
    (made / "wrong.toml").write_text(WRONG)
    return made


def report_of(python: Path | str, folder: Path) -> Any:
    """Return what the main paths say with an interpreter's libraries."""
    done = subprocess.run(
        [python, HERE / "main_paths.py", folder],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'launcher'}"},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="they are of the time of Python 3.11")
def test_the_lowest_versions_do_what_the_newest_do(python: Path, folder: Path) -> None:
    """Every module is imported, and each command says the same with both, mistakes included."""
    newest = report_of(sys.executable, folder)
    assert report_of(python, folder) == newest
    codes = {words: code for words, (code, _, _) in newest["said"].items()}
    wrong = {words for words, code in codes.items() if code != 0}
    assert wrong == {words for words in codes if words.endswith("/wrong.toml")}
    assert len(codes) > 30
