"""The probe guest is what its source says, and QEMU runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvmhooks.live.probe import CODE, RESET, RESET_AT, ROM_BYTES, image, probe
from kvmhooks.live.verdict import Verdict
from tests.tools.build_probe import assemble

QEMU = Path("/usr/bin/qemu-system-x86_64")


@pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("ld")), reason="no as and ld: install binutils"
)
def test_the_image_is_its_source_assembled() -> None:
    """``probe.S`` gives, byte for byte, the ROM that is started."""
    assert image() == assemble()


def test_the_image_is_a_rom() -> None:
    """It is 64 KiB with the code at its start and a jump at the reset vector."""
    rom = image()
    assert (len(rom), rom[: len(CODE)], rom[RESET_AT : RESET_AT + 3]) == (ROM_BYTES, CODE, RESET)


@pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}: install qemu-system-x86")
def test_the_probe_ends_where_linux_would_run() -> None:
    """Under TCG, which runs everything, the guest gets to its end."""
    verdict = probe(QEMU, accel="tcg", seconds=60)
    assert verdict == Verdict(is_usable=True, evidence="a 64-bit probe guest ran to its end")


def test_a_qemu_that_stays_is_ended(tmp_path: Path) -> None:
    """A guest that gets nowhere is ended after its time, and that is the evidence."""
    stuck = tmp_path / "qemu"
    stuck.write_text("#!/bin/sh\nexec sleep 60\n")
    stuck.chmod(0o755)
    assert probe(stuck, seconds=0.2) == Verdict(
        is_usable=False, evidence="a 64-bit probe guest got nowhere in 0 s"
    )


def test_an_internal_error_of_kvm_ends_the_probe(tmp_path: Path) -> None:
    """When KVM gives up, nobody waits for the end of the time."""
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 60\n")
    broken.chmod(0o755)
    assert probe(broken, seconds=30) == Verdict(
        is_usable=False, evidence="a 64-bit probe guest ended in a KVM internal error"
    )
