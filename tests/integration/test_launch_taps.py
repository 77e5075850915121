"""Taps that kvm-launch opens for its QEMU, on a real bridge in a network of the test's own."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.components import ROOT, Launcher, eventually, processes_of, read_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a network of its own")

SETUP = """
mount -t sysfs none /sys
ip link set lo up
ip link add br0 type bridge
ip link set br0 mtu 1400 up
echo ready
exec sleep 600
"""
BRIDGED = """
[[net]]
type = "bridge"
device = "br0"
queues = 2
mac = "52:54:00:00:00:01"
"""


class Network:
    """A network that one process holds: what is started within sees nothing else."""

    def __init__(self, holder: subprocess.Popen[str]) -> None:
        self.within = ("nsenter", "-t", str(holder.pid), "--net", "--mount")

    def links(self) -> dict[str, dict[str, Any]]:
        """The interfaces, by name, with their details."""
        output = subprocess.run(
            [*self.within, "ip", "-j", "-d", "link"], check=True, capture_output=True, text=True
        ).stdout
        return {link["ifname"]: link for link in json.loads(output)}


@pytest.fixture
def network() -> Iterator[Network]:
    """A network with a bridge."""
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-euc", SETUP],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "ready\n"
            yield Network(holder)
        finally:
            holder.kill()


@pytest.fixture
def inside(launcher: Launcher, network: Network) -> Launcher:
    """kvm-launch in that network."""
    launcher.program = (*network.within, *launcher.program)
    return launcher


def test_a_bridge_has_a_port_with_queues_while_the_vm_runs(
    inside: Launcher, network: Network
) -> None:
    """Opened for a QEMU that is nobody and starts no program; gone with it."""
    before = set(network.links())
    spec = inside.vm("tapped", BRIDGED, top="[machine]\naccel = 'tcg'\nuser = 'nobody'")
    for folder in (inside.base, *inside.base.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o111)
    with inside.start(spec) as process:
        assert process.stdout is not None
        try:
            read_until(process.stdout, "state: running")
            (qemu,) = processes_of("tapped")
            status = Path(f"/proc/{qemu}/status").read_text()
            words = Path(f"/proc/{qemu}/cmdline").read_text().split("\0")
            links = network.links()
        finally:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    (port,) = set(links) - before
    assert links[port]["master"] == "br0"
    assert (links[port]["address"], links[port]["mtu"]) == ("fe:54:00:00:00:01", 1400)
    assert "UP" in links[port]["flags"]
    tap = links[port]["linkinfo"]["info_data"]
    assert tap["numqueues"] + tap["numdisabled"] == 2  # a firmware uses one
    assert tap["persist"] is False
    assert f"Uid:\t{pwd.getpwnam('nobody').pw_uid}" in status
    assert "NoNewPrivs:\t1" in status
    assert "spawn=deny" in words[words.index("-sandbox") + 1]
    assert set(network.links()) == before
    assert inside.left_behind() == []


def test_the_guest_uses_both_queues(inside: Launcher, guest: Path) -> None:
    """Linux in the guest sees what was planned."""
    spec = inside.base / "queues.toml"
    spec.write_text(
        f"""
        name = "queues"
        machine.accel = "tcg"
        guest.report = true
        cpu.vcpus = 2
        memory.size = "256MiB"
        [boot]
        kernel = "{guest}/vmlinuz"
        initrd = "{guest}/initramfs.img"
        cmdline = "console=ttyS0 quiet no_timer_check"
        {BRIDGED}
        """
    )
    ran = inside.run("--json", spec)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["guest"]["nets"] == [{"mac": "52:54:00:00:00:01", "mtu": 1500, "queues": 2}]


def test_no_tap_outlives_a_kvm_launch_that_was_killed(inside: Launcher, network: Network) -> None:
    """It goes with the last file of it, which is QEMU's."""
    before = set(network.links())
    with inside.start(inside.vm("tapped", BRIDGED)) as process:
        assert process.stdout is not None
        read_until(process.stdout, "state: running")
        assert set(network.links()) != before
        process.kill()
        process.communicate()
    eventually(lambda: not processes_of("tapped"))
    eventually(lambda: set(network.links()) == before)


def test_a_port_that_cannot_be_made_is_told_and_leaves_nothing(
    inside: Launcher, network: Network
) -> None:
    """A bridge takes no MTU that it cannot carry; nothing was started."""
    before = network.links()
    ran = inside.run(inside.vm("tapped", BRIDGED + "mtu = 65536\n"))
    assert ran.returncode == 1
    assert "net[0].device: br0: Invalid argument" in ran.stderr
    assert {name: link["mtu"] for name, link in network.links().items()} == {
        name: link["mtu"] for name, link in before.items()
    }
    assert processes_of("tapped") == []


def test_what_a_killed_kvm_launch_left_is_removed_by_the_next(
    inside: Launcher, network: Network, tmp_path: Path
) -> None:
    """A macvtap (here a bridge: not every kernel has them) whose VM's lock is free; others stay."""
    held, free = tmp_path / ".held.lock", tmp_path / ".free.lock"
    names = {"kvm00000000000a": f"kvm-launch {held}", "kvm00000000000b": f"kvm-launch {free}",
             "kvm00000000000c": f"kvm-launch {tmp_path}/.gone.lock",
             "kvm00000000000d": "somebody else's"}  # fmt: skip
    for name, alias in names.items():
        script = 'ip link add "$1" type bridge && ip link set "$1" alias "$2"'
        subprocess.run([*network.within, "sh", "-euc", script, "sh", name, alias], check=True)
    free.touch()
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        inside.run("--timeout", "1", inside.vm("tapped", BRIDGED))
    assert set(network.links()) == {"lo", "br0", "kvm00000000000a", "kvm00000000000d"}


LINKS = """
import sys
from kvm_launch.spawn import links
links.add("made", "bridge", mac="52:54:00:00:00:09")
links.set_mtu("made", 1300)
links.bring_up("made")
links.set_alias("made", "kvm-launch /run/x")
assert links.mtu_of("made") == 1300
try:
    links.add("made", "bridge")
except FileExistsError as error:
    print(error.strerror)
links.remove("br0")
links.remove("never")
"""


def test_interfaces_are_made_and_removed_over_netlink(network: Network) -> None:
    """They are as ip(8) makes them; one that is not there is removed already."""
    ran = subprocess.run(
        [*network.within, sys.executable, "-c", LINKS],
        env={**os.environ, "PYTHONPATH": str(ROOT / "launcher")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.stdout, ran.stderr) == ("File exists\n", "")
    links = network.links()
    assert set(links) == {"lo", "made"}
    assert (links["made"]["address"], links["made"]["mtu"]) == ("52:54:00:00:00:09", 1300)
    assert links["made"]["ifalias"] == "kvm-launch /run/x"
    assert "UP" in links["made"]["flags"]
