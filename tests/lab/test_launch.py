"""A VM from its vm.toml on a real server: threads, memory and topology are where they were planned.

Nothing of what is asserted is taken from kvmhooks' own report: threads are read from /proc, memory
from numa_maps, the topology by the guest's own kernel.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from . import guests
from .variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

SPEC = """
name = "planned"

[machine]
accel = "kvm"

[boot]
kernel = "{kernel}"
initrd = "{initrd}"
cmdline = "{command_line}"

[cpu]
vcpus = {vcpus}
placement = "dedicated"
threads = 2

[memory]
size = "256MiB"
cells = {cells}
hugepages = "2MiB"
"""

OUTPUT = "/root/launch.log"
ENDS_SECONDS = 60
FIRMWARE_KIB = 2048
"""The memory that a node may lack: the hole below 1 MiB, ACPI's tables."""


@dataclass(frozen=True)
class Running:
    """A VM that runs in the lab."""

    lab: Lab
    plan: dict[str, Any]
    pid: int
    guest: guests.Facts

    def stop(self) -> int:
        """Ask kvm-launch to end it; its exit code comes back."""
        self.lab.output("kill -TERM $(cat /root/launch.pid)")
        ended = f"until [ -s /root/launch.code ]; do sleep 0.2; done; tail -n 20 {OUTPUT}"
        self.lab.output(ended, seconds=ENDS_SECONDS)
        return int(self.lab.output("cat /root/launch.code"))


@pytest.mark.once
@pytest.mark.parametrize("cells", [1, 2], ids=["1 cell", "2 cells"])
@pytest.mark.parametrize("command", ["kvm-launch", "kvm-launch --libvirt"])
def test_threads_memory_and_topology_are_as_planned(lab: Lab, command: str, cells: int) -> None:
    """vCPUs, memory and the guest's view of them are as planned, the two vCPUs of each guest core
    are on the two threads of one host core and threads to the guest, though no CPU feature was
    asked for, and the VM ends when it is asked to."""
    _give_huge_pages(lab)
    _put_spec(lab, cells=cells, vcpus=2 * cells)
    running = _start(lab, command)
    vcpus, plan = len(running.plan["vcpus"]), running.plan
    threads = dict(_affinities(running))
    planned = {each["vcpu"]: _set(each["cpus"]) for each in plan["vcpus"]}
    assert {n: threads[f"CPU {n}/KVM"] for n in range(vcpus)} == planned
    assert threads[_main_thread(running)] == _set(plan["emulator"])
    assert _pages_by_node(running) == _planned_pages(plan)
    _compare_topology(running)
    assert plan["topology"]["threads"] == 2
    for first in range(0, vcpus, 2):
        (cpu,), (other,) = (threads[f"CPU {n}/KVM"] for n in (first, first + 1))
        siblings = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        assert _set(lab.output(f"cat {siblings}")) == {cpu, other}
    assert running.stop() == 0


@pytest.mark.once  # test_launch_isolated shows it of a VM that owns CPUs, on each
def test_the_host_is_as_before_when_the_vm_has_ended(lab: Lab) -> None:
    """kvm-launch leaves nothing behind: no file, no process, no mask, no page."""
    _give_huge_pages(lab)
    _put_spec(lab, cells=2, vcpus=4)
    before = lab.snapshot()
    running = _start(lab, "kvm-launch")
    assert before.diff(lab.snapshot()) != []  # a running VM is seen
    assert running.stop() == 0
    lab.output(f"rm {OUTPUT}")
    assert before.diff(lab.snapshot()) == []


@pytest.mark.once
def test_a_dedicated_vm_that_does_not_fit_is_refused(lab: Lab) -> None:
    """More dedicated vCPUs than the server has CPUs: one message, exit code 1, nothing started."""
    _put_spec(lab, cells=1, vcpus=64)
    before = lab.snapshot()
    result = lab.kvm_launch("/root/vm.toml")
    assert result.exit_code == 1
    assert "vcpus" in result.stderr
    assert "Traceback" not in result.stderr
    assert before.diff(lab.snapshot()) == []


def _give_huge_pages(lab: Lab) -> None:
    for node in (0, 1):
        pool = f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"
        assert lab.output(f"echo 160 > {pool}; cat {pool}") == "160"


def _put_spec(lab: Lab, *, cells: int, vcpus: int) -> None:
    spec = SPEC.format(
        kernel=guests.KERNEL,
        initrd=guests.INITRD,
        command_line=f"{guests.COMMAND_LINE} {guests.HOLD}",
        cells=cells,
        vcpus=vcpus,
    )
    lab.put("/root/vm.toml", spec)


def _start(lab: Lab, command: str) -> Running:
    """Start it in the background, as a service would, and wait until the guest has told all."""
    plan = json.loads(lab.output("kvm-launch --print plan --json /root/vm.toml"))
    text = f"echo $$ > /root/launch.pid; exec {command} /root/vm.toml"
    lab.output(f"(bash -c '{text}'; echo $? > /root/launch.code) < /dev/null > {OUTPUT} 2>&1 &")
    console = guests.wait_for(lab, OUTPUT, "NESTED-HOLD")
    pid = int(lab.output("pgrep -f '^[^ ]*qemu-system-x86_64 .*planned'"))
    return Running(lab, plan, pid, guests.facts(console))


def _affinities(running: Running) -> Iterator[tuple[str, frozenset[int]]]:
    """Each thread of QEMU by its name, which QEMU was told to set."""
    shown = running.lab.output(
        f"cd /proc/{running.pid}/task; for t in *; do"
        ' echo "$(grep ^Cpus_allowed_list $t/status | cut -f2) $(cat $t/comm)"; done'
    )
    for line in shown.splitlines():
        cpus, name = line.split(" ", 1)
        yield name, _set(cpus)


def _main_thread(running: Running) -> str:
    return running.lab.output(f"cat /proc/{running.pid}/comm")


def _pages_by_node(running: Running) -> Counter[int]:
    """Huge pages of 2 MiB that QEMU has, by host node."""
    pages: Counter[int] = Counter()
    for line in running.lab.output(f"grep huge /proc/{running.pid}/numa_maps").splitlines():
        assert "kernelpagesize_kB=2048" in line
        for node, count in re.findall(r" N(\d+)=(\d+)", line):
            pages[int(node)] += int(count)
    return pages


def _planned_pages(plan: dict[str, Any]) -> Counter[int]:
    pages: Counter[int] = Counter()
    for cell in plan["cells"]:
        pages[cell["node"]] += cell["memory_kib"] // 2048
    return pages


def _compare_topology(running: Running) -> None:
    """Compare the guest's kernel with the sockets, cores, threads and cells of the plan."""
    seen, plan, shape = running.guest, running.plan, running.plan["topology"]
    assert len(seen.cpus) == len(plan["vcpus"])
    assert len({package for package, *_ in seen.cpus.values()}) == shape["sockets"]
    cores = {(package, core) for package, core, *_ in seen.cpus.values()}
    assert len(cores) == shape["sockets"] * shape["dies"] * shape["cores"]
    for cpu, (_, _, siblings, _) in seen.cpus.items():
        first = cpu - cpu % shape["threads"]
        assert _set(siblings) == frozenset(range(first, first + shape["threads"]))
    cells = {cell["id"]: _set(cell["vcpus"]) for cell in plan["cells"]}
    assert {node: _set(cpus) for node, (cpus, _) in seen.nodes.items()} == cells
    for cell in plan["cells"]:
        missing = cell["memory_kib"] - seen.nodes[cell["id"]][1]
        assert 0 <= missing <= FIRMWARE_KIB


def _set(text: str) -> frozenset[int]:
    spans = [part.split("-") for part in text.split(",") if part]
    return frozenset(cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1))
