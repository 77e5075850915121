"""Assemble ``kvmhooks/kvm/probe.S`` with binutils, and print the hex of ``CODE`` in ``probe.py``.

python3 tests/tools/build_probe.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).parents[2] / "kvmhooks/kvm/probe.S"
RESET_AT: Final = 0xFFF0
ROM_BYTES: Final = 1 << 16


def assemble(source: Path = SOURCE) -> bytes:
    """The whole ROM image that ``source`` describes."""
    with tempfile.TemporaryDirectory() as folder:
        linked, made = Path(folder, "probe.o"), Path(folder, "probe.bin")
        subprocess.run(["as", "--64", "-o", linked, source], check=True)
        flat = ["--oformat", "binary", "-Ttext", "0", "-e", "0"]
        subprocess.run(["ld", *flat, "-o", made, linked], check=True)
        return made.read_bytes()


class Watched(NamedTuple):
    """QEMU's run of an image: the same for two that do the same, however they are encoded."""

    status: int
    """QEMU's exit status."""
    instructions: tuple[str, ...]
    """Each that was executed, in the order of its first time; a jump's target is its number."""
    exceptions: tuple[str, ...]
    """The registers at each exception; addresses in the ROM are those of whoever laid it out."""


_INSTRUCTION: Final = re.compile(r"^0x([0-9a-f]+): (?: [0-9a-f]{2})+\s{2,}(\S.*)$")
_SELECTOR: Final = re.compile(r"^mov[lw] %e?(\w\w), (%[c-gs]s)$")
"""The load of a segment register takes 16 bits, whatever the operand's size that is encoded (AMD64
Architecture Programmer's Manual, volume 3, «MOV»)."""

_EXIT: Final = re.compile(r"^0x[0-9a-f]+: .*\boutb +%al, \$0xf4$", re.MULTILINE)
"""The guest's last instruction. QEMU 7.2 exits within it (hw/misc/debugexit.c); with QEMU 11.1 the
CPU was seen to go on, sometimes, before QEMU ended."""

_IN_ROM: Final = re.compile(r"(%cs:0x|\b0x|0{8}|\b)?ffff[0-9a-f]{4}\b|%cs:0x[0-9a-f]+")


def watch(rom: bytes, emulator: str = "qemu-system-x86_64", seconds: float = 60) -> Watched:
    """Run an image under TCG, and read from QEMU's log what it did (qemu(1), ``-d in_asm,int``).

    QEMU disassembles with capstone what it translates, in the mode that the CPU is in.
    """
    with tempfile.TemporaryDirectory() as folder:
        image, log = Path(folder, "rom"), Path(folder, "log")
        image.write_bytes(rom)
        done = subprocess.run(
            [emulator, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
             "-accel", "tcg", "-m", "16", "-bios", image, "-d", "in_asm,int", "-D", log,
             "-device", "isa-debug-exit,iobase=0xf4,iosize=1"],
            check=False, timeout=seconds, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        output = log.read_text()
    end = _EXIT.search(output)
    numbers: dict[int, int] = {}
    texts: list[str] = []
    for line in output[: end.end() if end else None].splitlines():
        found = _INSTRUCTION.match(line)
        if found and int(found[1], 16) not in numbers:
            numbers[int(found[1], 16)] = len(texts)
            texts.append(" ".join(found[2].split()))
    instructions = tuple(_placed(text, numbers) for text in texts)
    return Watched(done.returncode, instructions, tuple(_exceptions(output)))


def _placed(text: str, numbers: dict[int, int]) -> str:
    """An instruction with numbers of instructions for addresses in the ROM."""

    def number(found: re.Match[str]) -> str:
        address = int(found[0].rpartition("x")[2], 16)
        return f"instruction {numbers[address]}" if address in numbers else "ROM"

    return _SELECTOR.sub(r"mov %\1, \2", _IN_ROM.sub(number, text))


def _exceptions(log: str) -> Iterator[str]:
    """The registers at each exception, the instruction's own address left out."""
    for part in re.split(r"^(?= +\d+: v=)", log, flags=re.MULTILINE)[1:]:
        registers = part.partition("----------------")[0]
        yield _IN_ROM.sub("ROM", re.sub(r"\b(IP|pc|RIP|CC[SDO])=\S+", "", registers))


def main() -> None:
    """Print ``CODE``: what stands before the reset vector, without the padding."""
    image = assemble()
    if len(image) != ROM_BYTES:
        sys.exit(f"found an image of {len(image)} bytes, expected {ROM_BYTES}")
    code = image[:RESET_AT].rstrip(b"\0")
    code = code.ljust(-(-len(code) // 8) * 8, b"\0")
    for at in range(0, len(code), 44):
        sys.stdout.write(f"    {code[at : at + 44].hex()}\n")


if __name__ == "__main__":
    main()
