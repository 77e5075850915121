"""Newcomers beside a guest that owns CPUs: slices, services, groups, other guests."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from . import guests, isolated
from .lab import PATIENCE
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lab import Lab
    from .variants import Variant

pytestmark = pytest.mark.variants(*AS_INSTALLED)

CPUS = (6, 7)
SECONDS = 5.0
GROUPS = "/sys/fs/cgroup"
RAW = f"{GROUPS}/rawgroup"
SCOPES = f"{GROUPS}/machine.slice/*-beside.scope"

SPIN = "while :; do :; done"
"""A worker that wants a CPU all the time."""


def status(lab: Lab) -> Any:
    return json.loads(lab.kvmhooks("status", "--json").stdout)


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.5)


def effective(lab: Lab, group: str) -> str:
    return lab.run(f"cat {group}/cpuset.cpus.effective").stdout.strip()


def follow(lab: Lab) -> None:
    """Wait until the follower has nothing to do but to wait."""
    eventually(lambda: isinstance(status(lab)["claims"][0]["follower"], int))
    time.sleep(5)


def told(lab: Lab) -> list[str]:
    """Return the follower's lines on groups: which, what it may use, and how long it took."""
    output = lab.output("journalctl -q -o cat | grep -F 'follower: cpus/' || true")
    return [line.partition("follower: ")[2] for line in output.splitlines()]


def test_groups_that_come_later_are_kept_off_its_cpus(used_lab: Lab, variant: Variant) -> None:
    """A slice and a service in machine.slice at once, by the follower or by the kernel; a raw group
    is named, and kept off where the administrator says so; afterwards all is as before."""
    lab = used_lab
    before = lab.snapshot()
    isolated.start_busy(lab, "own", CPUS)
    follow(lab)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(isolated.measure, lab, "own", CPUS, SECONDS)
        time.sleep(1)
        isolated.spawn(lab, isolated.STRESS, "late.slice", "CPUQuota=25%")
        isolated.spawn(lab, isolated.STRESS, "machine.slice", "CPUQuota=25%")
        gap = running.result()
    service = f"{GROUPS}/machine.slice/run-*.service"
    for group in (f"{GROUPS}/late.slice", service):
        eventually(lambda group=group: effective(lab, group) == "0-5", 20)  # type: ignore[misc]
    after = isolated.measure(lab, "own", CPUS, SECONDS)
    print(f"{variant.name}: while they came: {gap}; then: {after}; {told(lab)}")
    assert after.user == {}
    raw_group(lab, variant)
    isolated.stop(lab, "own")
    lab.output("systemctl stop late.slice 'run-*.service'; kill $(cat /root/raw.pid)", seconds=60)
    lab.output(f"until rmdir {RAW}; do sleep 0.2; done; rm /etc/kvmhooks/kvmhooks.toml")
    time.sleep(2)
    left = before.diff(lab.snapshot(), kind="effective")
    assert left == [], "\n".join(left)
    assert lab.run("ls -d /run/systemd/*/late.slice.d /run/systemd/*/run-*.d").stdout == ""


def raw_group(lab: Lab, variant: Variant) -> None:
    """One that nobody's unit is: theirs, unless the administrator lets us."""
    lab.output(f"mkdir {RAW}")
    wish = "" if variant.has_remote_partitions else "taskset -c 6,7 "
    lab.output(
        f"setsid sh -c 'echo $$ > {RAW}/cgroup.procs; exec {wish}sh -c \"{SPIN}\"' "
        "< /dev/null > /dev/null 2>&1 & echo $! > /root/raw.pid"
    )
    time.sleep(3)
    named = {group["group"]: group for group in status(lab)["groups"]}
    before = isolated.measure(lab, "own", CPUS, SECONDS)
    print(f"{variant.name}: a raw group: {before}; {named}")
    if variant.has_remote_partitions:
        assert (named, before.user) == ({}, {})
    else:
        assert before.user
        assert (named["/rawgroup"]["cpus"], named["/rawgroup"]["manager"]) == ("6-7", "another")
        assert {process["name"] for process in named["/rawgroup"]["processes"]} == {"sh"}
    lab.output("mkdir -p /etc/kvmhooks")
    lab.put("/etc/kvmhooks/kvmhooks.toml", "[host]\nraw_groups = true\n")
    lab.kvmhooks("reconcile")
    after = isolated.measure(lab, "own", CPUS, SECONDS)
    print(f"{variant.name}: with raw_groups: {after}")
    assert (after.user, status(lab)["groups"]) == ({}, [])


@pytest.mark.slow  # on a busy machine it did not end within its limits
def test_an_ordinary_guest_that_starts_beside_is_kept_off_its_cpus(
    lab: Lab, variant: Variant
) -> None:
    """From the moment that its scope is there, and not only from its `started` on."""
    isolated.start_busy(lab, "own", CPUS)
    follow(lab)
    lab.put("/root/beside.xml", guests.domain("beside"))
    seen = (
        f"until f=$(ls -d {SCOPES} 2> /dev/null); do sleep 0.02; done; date +%s.%N; "
        'until [ "$(cat "$f"/cpuset.cpus.effective)" = 0-5 ]; do sleep 0.02; done; date +%s.%N'
    )
    with ThreadPoolExecutor(3) as threads:
        looking = threads.submit(lab.output, seen, seconds=180)
        measuring = threads.submit(isolated.measure, lab, "own", CPUS, 30.0)
        time.sleep(1)
        begun = lab.output("date +%s.%N")
        lab.output("virsh -q create /root/beside.xml", seconds=180)
        done = lab.output("date +%s.%N")
        there, narrowed = map(float, looking.result().split())
        ran = measuring.result()
    switches = {name: count for name, count in ran.user.items() if re.match(r"qemu|CPU ", name)}
    begin, end = float(begun), float(done)
    print(
        f"{variant.name}: of {end - begin:.2f} s the scope came after {there - begin:.2f} s, was "
        f"narrowed {narrowed - there:.2f} s later; on {CPUS} ran {switches}; {told(lab)}"
    )
    assert narrowed < end
    lines = lab.output("journalctl -q -o cat | grep -E 'beside.scope|beside: started'").splitlines()
    if variant.has_remote_partitions:
        assert sum(switches.values()) == 0
    else:
        assert "follower: cpus/machine.slice/" in lines[0], lines
    isolated.stop(lab, "beside")
    isolated.stop(lab, "own")
    assert status(lab)["knobs"] == []
