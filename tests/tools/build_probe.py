"""Assemble ``kvmhooks/live/probe.S`` with binutils, and print the hex of ``CODE`` in ``probe.py``.

python3 tests/tools/build_probe.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parents[2] / "kvmhooks/live/probe.S"
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
