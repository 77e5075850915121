"""Several VMs with one command, and fifty at once."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.components import Launcher, eventually, processes_of
from tests.integration.roms import write_rom
from tests.integration.test_launch_verbs import shown, verb

COUNT = 50


def folder_of(launcher: Launcher, names: Sequence[str], cpu: str = "vcpus = 1") -> Path:
    """A folder with the descriptions of tiny VMs."""
    folder = launcher.base / "vms"
    folder.mkdir()
    for name in names:
        launcher.vm(name, cpu=cpu, top="machine.accel = 'tcg'").rename(folder / f"{name}.toml")
    return folder


def test_fifty_vms_start_and_stop_at_once(launcher: Launcher) -> None:
    """One command leaves all of them running, each with a QEMU of its own, and all are gone
    after."""
    names = [f"vm{at:02}" for at in range(COUNT)]
    begun = time.monotonic()
    ran = launcher.run("--detach", folder_of(launcher, names), timeout=300)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    started = time.monotonic()
    assert shown(launcher) == dict.fromkeys(names, "running")
    listed = json.loads(verb(launcher, "ps", "--json").stdout)
    assert len({vm["qemu"] for vm in listed} | {vm["supervisor"] for vm in listed}) == (2 * COUNT)
    with ThreadPoolExecutor(COUNT) as pool:
        stopped = list(pool.map(lambda name: verb(launcher, "stop", "--now", name), names))
    print(f"{started - begun:.0f} s to start, {time.monotonic() - started:.0f} s to stop")
    assert [done.returncode for done in stopped] == [0] * COUNT
    assert [pid for name in names for pid in processes_of(name)] == []
    assert launcher.left_behind() == []


def test_detached_vms_run_whatever_becomes_of_the_others(launcher: Launcher) -> None:
    """One whose QEMU fails is told by its name and the exit code; the others run."""
    folder = folder_of(launcher, ["good", "well"])
    twice = "[[disk]]\npath = 'same.raw'\ncache = 'writeback'\n" * 2
    bad = launcher.vm("bad", twice, top="machine.accel = 'tcg'")
    (launcher.base / "same.raw").write_bytes(bytes(1 << 20))
    ran = launcher.run("--detach", folder, bad)
    assert ran.returncode == 3
    assert "[bad] state: ended: " in ran.stdout
    assert shown(launcher) == {"good": "running", "well": "running"}
    for name in ("good", "well"):
        assert verb(launcher, "stop", "--now", name).returncode == 0
    assert launcher.left_behind() == []


def test_what_does_not_fit_together_is_not_started(launcher: Launcher) -> None:
    """All are planned first: one CPU too many, and none runs; each that has no place is named."""
    count = len(os.sched_getaffinity(0)) + 1
    cpu = 'vcpus = 1\nplacement = "dedicated"\nthreads = 1'
    folder = folder_of(launcher, [f"vm{at}" for at in range(count)], cpu=cpu)
    ran = launcher.run(folder)
    assert ran.returncode == 1
    assert "state:" not in ran.stdout
    assert re.search(r"^vm\d: cpu\.vcpus: ", ran.stderr, re.MULTILINE), ran.stderr
    assert launcher.left_behind() == []


def test_a_rehearsal_shows_all_plans(launcher: Launcher) -> None:
    """--dry-run plans several together and starts none."""
    ran = launcher.run("--dry-run", folder_of(launcher, ["a", "b"]))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line for line in ran.stdout.splitlines() if line.startswith(("a:", "b:", "VM "))]
    assert launcher.left_behind() == []


def test_a_folder_without_vms_is_no_command(launcher: Launcher) -> None:
    """An empty folder is told so."""
    ran = launcher.run(folder_of(launcher, []))
    assert (ran.returncode, ran.stderr) == (
        2,
        f"{launcher.base / 'vms'}: found no NAME.toml in it, expected one for each VM\n",
    )


def test_several_vms_are_run_by_one_command(launcher: Launcher) -> None:
    """Each line has its VM's name; one that ends leaves the others; SIGTERM reaches all of them."""
    folder = folder_of(launcher, [])
    rom = write_rom(launcher.base / "off.rom", "powers off")
    off = f'[machine]\naccel = "tcg"\n[boot]\nfirmware = "{rom}"'
    for name, top in (("brief", off), ("long", "machine.accel = 'tcg'")):
        launcher.vm(name, top=top).rename(folder / f"{name}.toml")
    third = launcher.vm("third", top="machine.accel = 'tcg'")
    process = launcher.start(folder, third)
    assert process.stdout is not None
    output = ""
    wanted = ("[brief] end: ", "[long] state: running", "[third] state: running")
    while not all(text in output for text in wanted):
        line = process.stdout.readline()
        assert line.startswith(("[brief] ", "[long] ", "[third] "))
        output += line
    assert shown(launcher) == {"long": "running", "third": "running"}
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    for name in ("long", "third"):
        assert f"[{name}] end: QEMU ended: SIGTERM, and the guest did not power off" in out
        assert processes_of(name) == []
    assert launcher.left_behind() == []


def test_vms_die_with_the_command_that_runs_them(launcher: Launcher) -> None:
    """kill -9 of the one above: each supervisor is asked to stop, and ends its VM."""
    specs = [launcher.vm(name, top="machine.accel = 'tcg'") for name in ("one", "two")]
    process = launcher.start(*specs)
    eventually(lambda: shown(launcher) == {"one": "running", "two": "running"})
    process.kill()
    process.communicate()
    eventually(lambda: not processes_of("one") and not processes_of("two"), seconds=30)
    eventually(lambda: launcher.left_behind() == [])


def test_several_mistakes_are_told_together(launcher: Launcher) -> None:
    """All that is wrong with any, before any is started; options for one VM are refused."""
    good, bad = launcher.vm("good"), launcher.vm("bad", "[cpu2]")
    twin = launcher.base / "twin.toml"
    twin.write_text(good.read_text())
    ran = launcher.run(good, bad, twin)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{bad}: cpu2: found an unknown key" in ran.stderr
    assert f"name: found 'good' in {good} and {twin}, expected another for each" in ran.stderr
    ran = launcher.run("--json", good, bad)
    assert (ran.returncode, launcher.left_behind()) == (2, [])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a dedicated CPU needs a second one")
def test_dedicated_cpus_are_not_given_twice(launcher: Launcher) -> None:
    """Without isolation, too: the second is refused, or is on other CPUs."""
    cpu = 'vcpus = 1\nplacement = "dedicated"\nthreads = 1'
    specs = [launcher.vm(name, cpu=cpu, top="machine.accel = 'tcg'") for name in ("a", "b")]
    assert launcher.run("--detach", specs[0]).returncode == 0
    second = launcher.run("--detach", specs[1])
    listed = json.loads(verb(launcher, "ps", "--json").stdout)
    taken = [vm["dedicated"] for vm in listed]
    assert len(set(taken)) == len(taken) == (1 if second.returncode else 2)
    assert second.returncode == 0 or "\ncpu.vcpus: " in f"\n{second.stderr}"
    for vm in listed:
        verb(launcher, "stop", "--now", vm["name"])
    assert launcher.left_behind() == []
