"""Fifty VMs at once."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.components import Launcher, processes_of
from tests.integration.test_launch_verbs import shown, verb

COUNT = 50


@pytest.mark.slow
def test_fifty_vms_start_and_stop_at_once(launcher: Launcher) -> None:
    """All run at the same time, each with a QEMU of its own, and all are gone after."""
    names = [f"vm{at:02}" for at in range(COUNT)]
    specs = [launcher.vm(name, top="machine.accel = 'tcg'") for name in names]
    begun = time.monotonic()
    with ThreadPoolExecutor(COUNT) as pool:
        ran = list(pool.map(lambda spec: launcher.run("--detach", spec, timeout=300), specs))
        assert [one.returncode for one in ran] == [0] * COUNT, ran[0].stderr
        started = time.monotonic()
        assert shown(launcher) == dict.fromkeys(names, "running")
        listed = json.loads(verb(launcher, "ps", "--json").stdout)
        assert len({one["qemu"] for one in listed} | {one["supervisor"] for one in listed}) == (
            2 * COUNT
        )
        stopped = list(pool.map(lambda name: verb(launcher, "stop", "--now", name), names))
    print(f"{started - begun:.0f} s to start, {time.monotonic() - started:.0f} s to stop")
    assert [one.returncode for one in stopped] == [0] * COUNT
    assert [pid for name in names for pid in processes_of(name)] == []
    assert launcher.left_behind() == []
