"""From the start of kvm-launch to QEMU's first instruction, against the printed arguments by hand.

The VM's firmware is a ROM image of ours whose first instruction writes to a port that makes QEMU
end (``isa-debug-exit`` cannot be named in a vm.toml, so QEMU is started through a script that adds
it): the time to QEMU's end is the time to that instruction.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import in_turns, show

RESET_AT = 0xFFF0
FIRST_INSTRUCTIONS = bytes.fromhex("b02ae6f4")
"""``mov $0x2a, %al; out %al, $0xf4``"""

VM = """
name = "bench-start"
[machine]
accel = "tcg"
emulator = "{emulator}"
[boot]
firmware = "{rom}"
[cpu]
vcpus = 4
[memory]
size = "512MiB"
cells = 2
[[disk]]
path = "disk.img"
cache = "writeback"
iothread = 1
"""
SCRIPT = """#!/bin/sh
exec /usr/bin/qemu-system-x86_64 "$@" -device isa-debug-exit,iobase=0xf4,iosize=1
"""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        image = bytes(RESET_AT) + FIRST_INSTRUCTIONS
        (base / "rom").write_bytes(image.ljust(1 << 16, b"\0"))
        (base / "disk.img").write_bytes(bytes(1 << 20))
        (base / "qemu").write_text(SCRIPT)
        (base / "qemu").chmod(0o755)
        vm = base / "vm.toml"
        vm.write_text(VM.format(emulator=base / "qemu", rom=base / "rom"))
        program = Path(sys.executable).with_name("kvm-launch")
        launch = [str(program), "--run-dir", str(base / "run")]
        output = subprocess.run(
            [*launch, "--print", "argv", "--json", str(vm)], check=True, capture_output=True
        ).stdout
        argv = json.loads(output)
        best = in_turns(
            {
                "the printed arguments by hand": lambda: _until_first_instruction(argv),
                "kvm-launch": lambda: _until_first_instruction([*launch, str(vm)]),
            },
            rounds=15,
        )
    show(best, "the printed arguments by hand")


def _until_first_instruction(command: list[str]) -> None:
    """Run until QEMU has ended; by hand its status is 85, under kvm-launch that is a failure: 3."""
    status = subprocess.run(command, check=False, capture_output=True).returncode
    assert status in {0x2A << 1 | 1, 3}, status


if __name__ == "__main__":
    main()
