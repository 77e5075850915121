"""KVM's verdict is remembered for this boot and this QEMU, and believed from nobody else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest

from kvmhooks.host import Host, Kvm
from kvmhooks.kvm.accel import choose, from_memory
from kvmhooks.kvm.verdict import MEMORY, Verdict, recall, remember
from kvmhooks.qemu.run_dir import private_directory
from kvmhooks.spec import Machine, VmSpec, parse_vm

GOOD = Verdict(is_usable=True, evidence="it ran")
WITH_KVM = Host(kvm=Kvm(available=True))
SPEC = parse_vm('name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"', folder=Path("/"))


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


def test_auto_is_settled_from_memory(base: Path, emulator: Path, tmp_path: Path) -> None:
    """KVM where a probe ran, TCG where it did not or there is no KVM, None where none was made."""
    verdicts = {}
    verdicts["good"] = from_memory(SPEC, WITH_KVM, emulator, base)
    verdicts["without kvm"] = from_memory(SPEC, Host(), emulator, base)
    verdicts["unknown"] = from_memory(SPEC, WITH_KVM, emulator, tmp_path)
    keep(base, Verdict(is_usable=False, evidence="it got nowhere"), emulator)
    verdicts["bad"] = from_memory(SPEC, WITH_KVM, emulator, base)
    slow = "accelerator: tcg (QEMU emulates the CPU: slow, but it runs): "
    assert {name: choice and (choice.spec, choice.why) for name, choice in verdicts.items()} == {
        "good": (with_accel("kvm"), "accelerator: kvm: it ran"),
        "without kvm": (with_accel("tcg"), slow + "there is no working /dev/kvm"),
        "unknown": None,
        "bad": (with_accel("tcg"), slow + "it got nowhere"),
    }


def test_what_the_spec_says_stands(emulator: Path, tmp_path: Path) -> None:
    """An accelerator that is asked for is neither probed nor doubted."""
    asked = with_accel("kvm")
    choice = choose(asked, Host(), emulator, tmp_path / "run")
    assert (choice.spec, choice.why) == (asked, "accelerator: kvm, as asked for")
    assert not (tmp_path / "run").exists()


def test_a_probe_that_could_not_start_is_not_remembered(tmp_path: Path) -> None:
    """When QEMU ends at once, auto is TCG for now, with its last words, and is tried again."""
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho first >&2\necho no such machine >&2\nexit 1\n")
    broken.chmod(0o755)
    choice = choose(SPEC, WITH_KVM, broken, tmp_path / "run")
    assert choice.spec == with_accel("tcg")
    assert choice.why.endswith("QEMU could not start a probe guest: no such machine")
    assert list((tmp_path / "run").iterdir()) == []


def with_accel(accel: str) -> VmSpec:
    """The spec with an accelerator."""
    return attrs.evolve(SPEC, machine=Machine(accel=accel))  # type: ignore[arg-type]
