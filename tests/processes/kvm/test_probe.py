"""The probe guest is what its source says, and QEMU runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kvmhooks.kvm.probe import CODE, DONE, RESET, RESET_AT, ROM_BYTES, image, probe
from kvmhooks.kvm.verdict import Verdict
from tests.tools.build_probe import SOURCE, Watched, assemble, watch

QEMU = Path("/usr/bin/qemu-system-x86_64")


needs_assembler = pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("ld") and QEMU.exists()),
    reason="no as, ld or QEMU: install binutils and qemu-system-x86",
)


@pytest.fixture(scope="module")
def expected() -> Watched:
    """Return what the ROM that is started does."""
    return watch(image())


@needs_assembler
def test_the_image_does_what_its_source_says(expected: Watched) -> None:
    """QEMU executes the same instructions of both, takes the same exception in the same state, and
    ends alike. An assembler may choose other encodings: newer ones do."""
    assert watch(assemble()) == expected
    assert expected.status == DONE
    assert len(expected.instructions) > 50
    assert len(expected.exceptions) == 1


@needs_assembler
@pytest.mark.parametrize(
    ("written", "instead", "is_same"),
    [
        ("xor     %eax, %eax", ".byte 0x33, 0xc0", True),
        ("or      $1, %al", ".byte 0x80, 0xc8, 0x01", True),
        ("mov     %ax, %ds", ".byte 0x66, 0x8e, 0xd8", True),
        ("1 << 26", "1 << 25", False),
        ("or      $0x20, %eax", "or      $0x30, %eax", False),
        ("or      $0x100, %eax", "or      $0x900, %eax", False),
        ("cmp     $0x2a, %ebx", "cmp     $0x2a, %ebx; nop", False),
        ("0x00af9b000000ffff", "0x00af9a000000ffff", False),
    ],
)
def test_a_difference_is_seen_and_another_encoding_is_none(
    tmp_path: Path, expected: Watched, written: str, instead: str, *, is_same: bool
) -> None:
    """Of the source's text one thing is changed: what it does, or how it is encoded."""
    text = SOURCE.read_text()
    assert written in text
    changed = tmp_path / "probe.S"
    changed.write_text(text.replace(written, instead, 1))
    rom = assemble(changed)
    assert rom != assemble()
    assert (watch(rom) == expected) is is_same


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
    """Nobody waits for the end of the time when KVM gives up."""
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho 'KVM internal error. Suberror: 1' >&2\nexec sleep 60\n")
    broken.chmod(0o755)
    assert probe(broken, seconds=30) == Verdict(
        is_usable=False, evidence="a 64-bit probe guest ended in a KVM internal error"
    )
