"""KVM's verdict is remembered for this boot and this QEMU, and believed from nobody else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvmhooks.kvm.verdict import MEMORY, Verdict, recall, remember
from kvmhooks.qemu.run_dir import private_directory

GOOD = Verdict(is_usable=True, evidence="it ran")


@pytest.fixture
def emulator(tmp_path: Path) -> Path:
    """A QEMU: only its path, size and time matter."""
    path = tmp_path / "qemu"
    path.write_text("qemu")
    return path


@pytest.fixture
def base(tmp_path: Path, emulator: Path) -> Path:
    """A directory in which a good verdict on the emulator is kept."""
    keep(tmp_path / "run", GOOD, emulator)
    return tmp_path / "run"


def keep(base: Path, verdict: Verdict, emulator: Path) -> None:
    """Remember a verdict below ``base``."""
    descriptor = private_directory(base)
    remember(verdict, emulator, descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("is_usable", [True, False])
def test_recall_inverts_remember(base: Path, emulator: Path, *, is_usable: bool) -> None:
    """The last verdict is recalled, and nothing else is left in the directory."""
    verdict = Verdict(is_usable=is_usable, evidence="a reason")
    keep(base, verdict, emulator)
    assert recall(emulator, base) == verdict
    assert [path.name for path in base.iterdir()] == [MEMORY]
    assert (base / MEMORY).stat().st_mode & 0o777 == 0o600


def test_another_qemu_is_another_matter(base: Path, emulator: Path, tmp_path: Path) -> None:
    """A QEMU that was replaced, or lies elsewhere, has no verdict."""
    other = tmp_path / "other"
    other.write_text("qemu")
    assert recall(other, base) is None
    emulator.write_text("a newer qemu")
    assert recall(emulator, base) is None


def test_another_boot_is_another_matter(base: Path, emulator: Path) -> None:
    """A verdict of another boot is none."""
    document = json.loads((base / MEMORY).read_text())
    document["of"][0] = "00000000-0000-0000-0000-000000000000"
    (base / MEMORY).write_text(json.dumps(document))
    assert recall(emulator, base) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"of": 1}', "\x80"])
def test_nonsense_is_no_verdict(base: Path, emulator: Path, content: str) -> None:
    """A file of another content is as if there were none."""
    (base / MEMORY).write_text(content, encoding="latin-1")
    assert recall(emulator, base) is None


def test_half_of_it_is_no_verdict(base: Path, emulator: Path) -> None:
    """Nothing is recalled, wherever the writing was broken off."""
    content = (base / MEMORY).read_bytes()
    for length in range(len(content)):
        (base / MEMORY).write_bytes(content[:length])
        assert recall(emulator, base) is None


def test_a_link_is_no_verdict(base: Path, emulator: Path) -> None:
    """A link is not followed, and neither is an empty directory a memory."""
    (base / MEMORY).rename(base / "elsewhere")
    assert recall(emulator, base) is None
    (base / MEMORY).symlink_to("elsewhere")
    assert recall(emulator, base) is None
