"""The wheels of released versions that the lab upgrades from are made of what git has of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WHEELS = sorted((ROOT / "tests/lab/releases").glob("*/*.whl"))

SOURCES = {
    "kvmhooks": "kvmhooks",
    "kvm_launch": "launcher/kvm_launch",
    "data/share/man/man1": "docs/man",
    "data/share/man/man5": "docs/man",
    "data/share/bash-completion/completions": "docs/completion",
    "data/share/zsh/site-functions": "docs/completion",
    "data/share/fish/vendor_completions.d": "docs/completion",
}
"""The places from which the files of a wheel come."""


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.parent.name)
def test_a_kept_wheel_is_its_commit(wheel: Path) -> None:
    """Byte for byte, and no module of the commit is left out."""
    commit = wheel.parent.name
    done = subprocess.run(
        ["git", "-C", ROOT, "archive", commit], capture_output=True, check=False
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"this checkout does not have {commit}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        there = {
            member.name: found.read()
            for member in archive
            if (found := archive.extractfile(member))
        }
    with zipfile.ZipFile(wheel) as file:
        contents = {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}
    came = {_source(name): content for name, content in contents.items()}
    assert came == {name: there.get(name) for name in came}
    packages = ("kvmhooks/", "launcher/kvm_launch/")
    assert {name for name in there if name.startswith(packages) and name.endswith(".py")} == {
        name for name in came if name.endswith(".py")
    }


def _source(name: str) -> str:
    """Return what a file of a wheel is in a checkout."""
    inside = name.partition(".data/")[2] or name
    (found,) = [f"{at}{inside.removeprefix(place)}" for place, at in SOURCES.items()
                if inside.startswith(f"{place}/")]  # fmt: skip
    return found
