"""Files and programs of kvm-launch for a VM on a real host: taps with vhost, a macvtap, helpers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .launched import Launched, left_behind, run_once, settle
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*AS_INSTALLED)

MORE = """
[[net]]
type = "bridge"
device = "lab0"
queues = 2
vhost = true
mac = "52:54:00:00:77:01"
[[net]]
type = "macvtap"
device = "{below}"
mac = "52:54:00:00:77:02"
[[filesystem]]
path = "/srv"
tag = "srv"
[tpm]
model = "crb"
"""
HELPERS = ("virtiofsd", "swtpm")


def links(lab: Lab) -> list[str]:
    """The names of all interfaces."""
    return sorted(lab.output("ls /sys/class/net").split())


def helpers(lab: Lab) -> dict[str, tuple[str, str]]:
    """By name, in which group a helper is and where it may run."""
    found = {}
    for name in HELPERS:
        for pid in lab.run(f"pgrep -x {name}").stdout.split():
            group = lab.output(f"tail -n 1 /proc/{pid}/cgroup").rpartition("/")[2]
            cpus = lab.output(f"grep Cpus_allowed_list /proc/{pid}/status").split()[1]
            found[name] = (group, cpus)
    return found


def prepared(lab: Lab) -> Launched:
    """A VM with all of it, on a bridge and on the lab's wire."""
    lab.output("modprobe -a vhost_net macvtap tun; ip link add lab0 type bridge; "
               "ip link set lab0 up")  # fmt: skip
    below = lab.output("ls /sys/bus/pci/devices/0000:41:00.0/virtio*/net").split()[-1]
    vm = Launched(lab, "own")
    lab.put("/root/more", MORE.format(below=below))
    lab.output("cat /root/more >> /root/own.toml; rm /root/more")
    return vm


@pytest.mark.once
@pytest.mark.parametrize("ending", ["stop", "kill -9"])
def test_devices_and_helpers_come_and_go_with_their_vm(used_lab: Lab, ending: str) -> None:
    """A tap of two queues and a macvtap, both through vhost; a shared folder's and a TPM's helper
    beside the emulator; afterwards no interface, no process and no group is left of them."""
    lab = used_lab
    vm = prepared(lab)
    before, there = lab.snapshot(), links(lab)
    vm.start()
    (tap,) = (name for name in links(lab) if name.startswith("kvmtap"))
    assert lab.output(f"readlink /sys/class/net/{tap}/master").endswith("/lab0")
    assert lab.output(f"ls -d /sys/class/net/{tap}/queues/rx-*").count("rx-") == 2
    assert len(set(links(lab)) - set(there)) == 2
    opened = lab.output(f"ls -l /proc/{vm.qemu()}/fd")
    assert opened.count("/dev/vhost-net") == 3
    emulator = lab.output("cat /sys/fs/cgroup/machine*/*own*/libvirt/emulator/cpuset.cpus")
    assert helpers(lab) == dict.fromkeys(HELPERS, ("emulator", emulator.strip()))
    assert vm.intruders() == {"user": 0, "device interrupts": 0}
    workers = lab.output("ps -eLo comm | grep -c '^vhost-' || true")
    print(f"{lab.variant.name}: {tap}, {workers} vhost threads, helpers {helpers(lab)}")
    if ending == "stop":
        vm.stop()
        settle(lab, "own", code=0)
    else:
        assert vm.stop("KILL") == 137
        lab.output(f"while [ -e /proc/{vm.qemu() or 'none'} ]; do sleep 0.2; done", seconds=60)
        settle(lab, "own")
        lab.output("until ! pgrep -x 'virtiofsd|swtpm'; do sleep 0.2; done", seconds=30)
        run_once(lab)  # the next to start removes the macvtap
        lab.output("rm -rf /run/kvm-launch/own /run/kvm-launch/.own.lock")
    assert (links(lab), helpers(lab)) == (there, {})
    assert left_behind(lab, before) == []


@pytest.mark.once
def test_a_services_qemu_is_apart_from_it(lab: Lab) -> None:
    """Also one that owns no CPUs: its scope is delegated, and goes with it; the service has the
    supervisor alone."""
    vm = Launched(lab, "own")
    lab.output("sed -i 's/exclusive = true/exclusive = false/' /root/own.toml")
    vm.serve()
    scope = "machine-kvm-launch-own.scope"
    assert f"/machine.slice/{scope}/" in lab.output(f"cat /proc/{vm.qemu()}/cgroup")
    assert lab.output(f"systemctl show -P Delegate {scope}") == "yes"
    group = lab.output("systemctl show -P ControlGroup kvm-launch@own")
    supervisor = lab.output("systemctl show -P MainPID kvm-launch@own")
    procs = lab.output(["cat", f"/sys/fs/cgroup{group}/cgroup.procs"]).split()  # it has a backslash
    assert procs == [supervisor]
    lab.output("systemctl stop kvm-launch@own", seconds=180)
    assert lab.run(f"systemctl is-active {scope}").stdout.strip() == "inactive"


@pytest.mark.once
def test_a_service_is_reloaded(lab: Lab) -> None:
    """systemctl reload plans its VM anew, which stays where nothing would be better."""
    vm = Launched(lab, "own")
    vm.serve()
    home = vm.cpus()
    away = next(cpu for cpu in range(home[0] // 4 * 4, 8) if cpu not in home and cpu != 0)
    lab.output(f"kvm-launch set own vcpu.1={away} emulator=0")
    assert vm.cpus() != home
    lab.output("systemctl reload kvm-launch@own", seconds=60)
    assert vm.cpus()[1] == vm.cpus()[0] + 1
    assert json.loads(lab.output("kvm-launch ps --json"))[0]["exclusive"].count("-") == 1
    lab.output("systemctl stop kvm-launch@own", seconds=180)
    assert lab.output("kvmhooks reconcile && kvmhooks status").endswith("nothing is held")
