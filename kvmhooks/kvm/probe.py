"""Does KVM run what every x86-64 kernel needs? A guest of 300 bytes tells within a second.

``/dev/kvm`` may be there and start firmware, and Linux hangs all the same: a KVM that is itself in
a VM without hardware virtualisation emulates code at privilege level 0, or cannot. So a ROM image
of our own (``probe.S`` beside this module) is started: it enters 64-bit mode, takes an exception,
counts to 2^26, and ends QEMU through its ``isa-debug-exit`` device. Hardware takes 30 ms for it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Literal

from kvmhooks.kvm.verdict import Verdict
from kvmhooks.signals import held_back

CODE: Final = bytes.fromhex(
    """
    fa2e660f011620010f20c00c010f22c066ea1800ffff080066b810008ed88ec08ed0bc00000200fcbf000001
    0031c0b900200000f3abc7050000010003100100bf00100100b803200100b904000000890783c70805001000
    00e2f4bf00200100b883000000b900080000890783c7080500002000e2f40f20e083c8200f22e0b800000100
    0f22d8b9800000c00f320d000100000f300f20c00d000000800f22c0eaa700ffff1800b8f300ffff66890425
    3070010066c7042532700100180066c7042534700100008ec1e8106689042536700100b82601ffff0f011831
    dbcc83fb2a750db900000004ffc975fc89d8e6f4f4ebfdbb2a00000048cf8db4000066900000000000000000
    ffff0000009bcf00ffff00000093cf00ffff0000009baf001f000001ffff3f000070010000000000
    """
)
"""``probe.S``, assembled: what stands before the reset vector."""

RESET: Final = bytes.fromhex("e90d00")
"""The jump at the reset vector."""

ROM_BYTES: Final = 1 << 16
RESET_AT: Final = 0xFFF0

DONE: Final = 0x2A << 1 | 1
"""QEMU's exit status after the guest wrote 0x2a (``isa-debug-exit``, hw/misc/debugexit.c)."""

_INTERNAL_ERROR: Final = "KVM internal error"
"""QEMU's words when KVM returns ``KVM_EXIT_INTERNAL_ERROR`` (accel/kvm/kvm-all.c)."""

_POLL_SECONDS: Final = 0.01

SECONDS: Final = 3.0
"""The time that the guest may take; a busy host that runs it on hardware needs a tenth of it."""


def image() -> bytes:
    """Return the ROM: 64 KiB that end with the reset vector."""
    return CODE.ljust(RESET_AT, b"\0") + RESET.ljust(ROM_BYTES - RESET_AT, b"\0")


def probe(
    emulator: Path, *, accel: Literal["kvm", "tcg"] = "kvm", seconds: float = SECONDS
) -> Verdict:
    """Start the guest and see. A signal has it end, and comes when nothing of it is left."""
    with held_back() as asked, tempfile.TemporaryDirectory(prefix="kvm-probe-") as folder:
        rom, log = Path(folder, "probe.rom"), Path(folder, "stderr")
        rom.write_bytes(image())
        arguments = [
            *(emulator, "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35", "-accel", accel, "-m", "16", "-bios", rom),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
        ]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            ) as process,
        ):
            try:
                status = _wait(process, log, time.monotonic() + seconds, asked)
            finally:
                process.kill()
        return _verdict(status, log.read_text(errors="replace"), seconds)


def _wait(
    process: subprocess.Popen[bytes], log: Path, until: float, asked: list[int]
) -> int | None:
    """Return QEMU's exit status; None if time is up, it was asked to end, or KVM gave up before.

    After an internal error of KVM, QEMU stops the guest and stays.
    """
    while (status := process.poll()) is None and time.monotonic() < until:
        if asked or _INTERNAL_ERROR in log.read_text(errors="replace"):
            return None
        time.sleep(_POLL_SECONDS)
    return status


def _verdict(status: int | None, output: str, seconds: float) -> Verdict:
    if status == DONE:
        return Verdict(is_usable=True, evidence="a 64-bit probe guest ran to its end")
    if status is None and _INTERNAL_ERROR in output:
        return Verdict(
            is_usable=False,
            evidence="a 64-bit probe guest ended in a KVM internal error",
        )
    if status is None:
        return Verdict(
            is_usable=False, evidence=f"a 64-bit probe guest got nowhere in {seconds:.0f} s"
        )
    last = (output.strip().splitlines() or [f"status {status}"])[-1]
    return Verdict(
        is_usable=False,
        evidence=f"QEMU could not start a probe guest: {last}",
        is_lasting=False,
    )
