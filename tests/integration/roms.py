"""Firmware of a few bytes that does one thing at once: the guests for tests of how a VM ends.

A ROM of 64 KiB ends below 4 GiB, and the CPU begins at its last 16 bytes, in real mode (Intel SDM,
volume 3, «First Instruction Executed»).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_HALT: Final = "f4 eb fd"
"""1: hlt; jmp 1b"""

_POWER_OFF: Final = """
    66 b8 40 f8 00 80  ba f8 0c  66 ef  66 b8 01 06 00 00  ba fc 0c  66 ef
    66 b8 44 f8 00 80  ba f8 0c  66 ef  ba fc 0c  b0 80  ee
    ba 04 06  b8 00 20  ef
"""
"""ICH9: PMBASE = 0x600, ACPI_CNTL = enabled, then SLP_EN with the type of S5, which is 0 in QEMU
(hw/acpi/core.c, ``acpi_pm1_cnt_write()``)."""

ESCAPES: Final = b"seen\x1b[31mred\x1b]0;title\x07\xc2\x9b5n\xe2\x80\xaebidi\r\ndone\n"
"""Output of a hostile guest: a colour, a title, a question in 8 bits, an override."""

_RESET_ONCE: Final = "b0 50 e6 70 e4 71 84 c0 75 0f b0 50 e6 70 b0 01 e6 71 b0 fe e6 64 f4 eb fd"
"""Unless CMOS byte 0x50, which a reset leaves, is set: set it, and reset through the keyboard
controller. Else go on behind this."""

_EJECT: Final = "66 31 c0 ba d8 0c 66 ef 66 40 66 ef ba dc 0c b0 08 ee"
"""Ask for the registers of CPU hotplug, choose vCPU 1, eject it (docs/specs/acpi_cpu_hotplug)."""

_REMEMBER: Final = """
    b8 00 10  8e d8  31 db
    43  75 06  ba f8 03 b0 2e ee
    31 ff  89 1d  81 c7 00 10  75 f8
    31 ff  39 1d  75 08  81 c7 00 10  75 f6
    eb df
    ba f8 03 b0 58 ee
"""
"""Write a number to 16 pages and read it back, again and again with the next: a full stop on the
serial port after 65,536 of them, an X and the end when a page has forgotten it."""

ROMS: Final = {
    "powers off": _POWER_OFF + _HALT,
    "resets once": _RESET_ONCE + _POWER_OFF + _HALT,
    "panics": "ba 05 05 b0 01 ee" + _HALT,  # pvpanic, port 0x505: docs/specs/pvpanic.rst
    "starves its watchdog": "ba 43 04 b0 0f ee" + _HALT,  # ib700, port 0x443: after 0 seconds
    "sits": _HALT,
    "ejects a vCPU": _EJECT + _HALT,
    "remembers": _REMEMBER + _HALT,
    "echoes": "b0 4b ba f8 03 ee  ba fd 03 ec a8 01 74 f8  ba f8 03 ec ee  eb f1",
    # says K on the serial port (16550, port 0x3f8), then whatever it hears
    "escapes": "ba f8 03" + "".join(f"b0 {byte:02x} ee" for byte in ESCAPES) + _POWER_OFF + _HALT,
    "floods": "b0 78 ba f8 03 ee eb fd",  # an x on the serial port, for ever
}


def write_rom(path: Path, does: str) -> Path:
    """Write the firmware that ``does`` this, and give its path back."""
    rom = bytes.fromhex(ROMS[does]).ljust(0xFFF0, b"\0") + bytes.fromhex("e90d00")
    path.write_bytes(rom.ljust(1 << 16, b"\0"))
    return path
