"""Two hundred lives of VMs with every kind of end, beside a host of files: nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.components import Launcher, eventually, processes_of
from tests.integration.roms import write_rom
from tests.isolate_model.tree import snapshot

LIVES = 200
LANES = 4
ENDS = ("by itself", "SIGTERM", "SIGTERM early", "kill QEMU", "kill kvm-launch", "kill both")
"""Ends of a life; kvm-launch is asked, or killed, at a random moment."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2, reason="a dedicated CPU needs a second one"
    ),
]


def live(launcher: Launcher, spec: Path, end: str, chance: random.Random) -> int | None:
    """One life of a VM; the exit code of its kvm-launch."""
    process = launcher.start("--timeout", "30", spec)
    wait = chance.uniform(0, 0.4) if "early" in end else chance.uniform(0.2, 2.5)
    if end != "by itself":
        time.sleep(wait)
    if end.startswith("SIGTERM"):
        process.send_signal(signal.SIGTERM)
    if end in {"kill QEMU", "kill both"}:
        for qemu in processes_of(spec.stem):
            os.kill(qemu, signal.SIGKILL)
    if end in {"kill kvm-launch", "kill both"}:
        process.kill()
    if end == "kill QEMU":
        process.send_signal(signal.SIGTERM)  # it may not have had one yet
    process.communicate(timeout=90)
    eventually(lambda: not processes_of(spec.stem), seconds=30)
    return process.returncode


def lane(launcher: Launcher, number: int) -> list[tuple[str, int | None]]:
    """A fourth of all lives, one after another; the VMs of the first own a CPU."""
    chance = random.Random(number)  # noqa: S311 -- the same lives each time
    ends = []
    for at in range(LIVES // LANES):
        end = chance.choice(ENDS)
        rom = write_rom(launcher.base / f"{number}.rom",
                        "powers off" if end == "by itself" else "sits")  # fmt: skip
        own = 'vcpus = 1\nplacement = "dedicated"\nthreads = 1\n[isolation]\nexclusive = true'
        spec = launcher.vm(
            f"lane{number}",
            "[console]\ntype = 'none'",
            cpu="vcpus = 1" if number else own,
            top=f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"',
        )
        ends.append((f"{at} {end}", live(launcher, spec, end, chance)))
    return ends


def test_nothing_is_left_of_two_hundred_lives(launcher: Launcher, root: Path) -> None:
    """No process, no file in a run directory, no knob of the host and no claim; and each exit code
    is one that its end may have."""
    before = snapshot(root)
    with ThreadPoolExecutor(LANES) as pool:
        lives = [life for ends in pool.map(lambda n: lane(launcher, n), range(LANES))
                 for life in ends]  # fmt: skip
    command = [sys.executable, "-m", "kvmhooks.cli.main", "reconcile", "--root", str(root)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert (len(lives), snapshot(root)) == (LIVES, before)
    assert not (root / "run/kvmhooks/state.json").exists()
    for number in range(LANES):  # a life that is not killed removes what a killed one left
        launcher.vm(f"lane{number}", top="machine.accel = 'tcg'")
        launcher.run("--timeout", "0.1", launcher.base / f"lane{number}.toml")
    assert launcher.left_behind() == []
    allowed = {"by itself": {0}, "SIGTERM": {1, 3, -15}, "kill": {1, 3, -9, -15}}
    for what, code in lives:
        (expected,) = (codes for end, codes in allowed.items() if end in what)
        assert code in expected, f"{what} ended with {code}"
