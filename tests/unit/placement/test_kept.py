"""The CPUs that are kept for the host, and what a plan tells of what it had to give up."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.inventory.usage import Holding, from_json
from kvmhooks.placement import Plan, plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.fakehost import FakeHost, write_host
from tests.placement_experts.machines import Cores, Machine

NODE = "sys/devices/system/node"
OTHER = "00000001-0000-0000-0000-000000000000"


def vm(text: str = "", *, vcpus: int = 2, memory: str = 'size = "256MiB"') -> VmSpec:
    """A dedicated VM."""
    cpu = f'[cpu]\nvcpus = {vcpus}\nplacement = "dedicated"\n{text}'
    return parse_vm(f'name = "vm"\n{cpu}\n[memory]\n{memory}\n', folder=Path("/vm"))


def own(decided: Plan) -> str:
    """The CPUs of its vCPUs."""
    return str(decided.dedicated_cpus)


def hybrid(folder: Path) -> Host:
    """Two performance cores (0-3), two efficiency cores (4-5) and two low-power ones (6-7)."""
    machine = Machine(
        groups=(
            Cores(2, (0, 1), step=2, l3=0, l3_kib=4096, max_khz=5_000_000),
            Cores(2, (4,), l3=0, l3_kib=4096, l2_cores=2, max_khz=3_000_000, efficient=True),
            Cores(2, (6,), l2_cores=2, max_khz=2_000_000, efficient=True),
        ),
        cores=6,
        efficiency="4-7",
        memory_mib=4096,
    )
    machine.write(folder)
    return read(folder)


def test_low_power_cores_are_the_hosts_first_and_a_vms_last(tmp_path: Path) -> None:
    """Performance cores, else efficiency cores, else low-power ones, which is told."""
    host = hybrid(tmp_path)
    first = plan(vm(vcpus=4), host)
    assert (own(first), str(first.housekeeping)) == ("0-3", "6-7")
    taken = Holding(name="a", uuid=OTHER, exclusive=CpuSet.parse("0-3"))
    second = plan(vm(), host, (taken,))
    assert (own(second), second.topology.threads, str(second.housekeeping)) == ("4-5", 1, "6-7")
    more = Holding(name="a", uuid=OTHER, exclusive=CpuSet.parse("0-1,4-5"))
    third = plan(vm('kind = "efficiency"'), host, (more,))
    assert own(third) == "6-7"
    assert any("low-power cores, CPUs 6-7" in warning for warning in third.warnings)


def test_kinds_are_mixed_only_where_nothing_else_fits(tmp_path: Path) -> None:
    """One vCPU a core then, and the plan names the cores of each kind."""
    decided = plan(vm(vcpus=3), hybrid(tmp_path))
    assert (own(decided), decided.topology.threads) == ("0,2,4", 1)
    assert decided.score["kinds"] == 1
    assert any("performance CPUs 0,2, efficiency CPUs 4" in each for each in decided.warnings)


def test_the_host_keeps_clear_of_a_modules_l2(tmp_path: Path) -> None:
    """Of two modules of efficiency cores the VM has one, the host the other."""
    FakeHost(cores=8).write(tmp_path)
    for cpu in range(8):
        shared = "0f" if cpu < 4 else "f0"
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index2/shared_cpu_map").write_text(
            shared
        )
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index2/id").write_text(str(cpu // 4))
    decided = plan(vm(vcpus=4), read(tmp_path))
    assert (own(decided), str(decided.housekeeping)) == ("4-7", "0-1")
    assert decided.score["shared_l2"] == 0


def test_qemus_threads_of_other_vms_keep_their_cpus(tmp_path: Path) -> None:
    """Six VMs have two CPUs together, a seventh wants two more; the record says whose they are."""
    host = read(write_host(tmp_path, cores=12))
    first = of_plan(plan(vm(vcpus=1), host))
    assert str(first.helpers) == "0-1"
    assert from_json(first.to_json()) == first
    old = first.to_json()
    del old["helpers"]  # as the version before wrote it
    assert from_json(old).helpers == CpuSet()
    others = [
        Holding(name=f"a{at}", uuid=f"{at:08x}{OTHER[8:]}", helpers=CpuSet.parse("0-1"))
        for at in range(6)
    ]
    sixth, seventh = plan(vm(), host, others[:5]), plan(vm(), host, others)
    assert (str(sixth.emulator), str(sixth.housekeeping)) == ("0-1", "0-1")
    assert (str(seventh.emulator), str(seventh.housekeeping)) == ("2-3", "0-3")


def test_what_systemd_keeps_is_the_hosts(tmp_path: Path) -> None:
    """``systemd.cpu_affinity=`` names the host's CPUs; what is no list is a flaw."""
    host = read(write_host(tmp_path / "a", cores=8, cmdline="a systemd.cpu_affinity=2-3"))
    decided = plan(vm(vcpus=4), host)
    assert (own(decided), str(decided.emulator), str(decided.housekeeping)) == (
        "0-1,4-5",
        "2-3",
        "2-3",
    )
    every = read(write_host(tmp_path / "c", cores=8, cmdline="a systemd.cpu_affinity=0-7"))
    assert str(plan(vm(), every).housekeeping) == "0-1"  # which keeps nothing from anybody
    wrong = read(write_host(tmp_path / "b", cores=8, cmdline="a systemd.cpu_affinity=x"))
    assert str(plan(vm(), wrong).housekeeping) == "0-1"
    assert wrong.warnings == ("/proc/cmdline: systemd.cpu_affinity=x is no list of CPUs",)


def test_what_systemds_configuration_keeps_is_the_hosts_too(tmp_path: Path) -> None:
    """Lines add up, an empty one takes back those before, and of two files of a name one counts."""
    root = write_host(tmp_path, cores=8)
    files = {
        "etc/systemd/system.conf": "[Manager]\n#CPUAffinity=7\nCPUAffinity=5\n",
        "usr/lib/systemd/system.conf": "[Manager]\nCPUAffinity=6\n",
        "usr/lib/systemd/system.conf.d/b.conf": "[Manager]\nCPUAffinity=7\n",
        "etc/systemd/system.conf.d/b.conf": "[Manager]\nCPUAffinity = 3\n[Other]\nCPUAffinity=1\n",
        "run/systemd/system.conf.d/a.conf": (
            "[Manager]\nCPUAffinity=\nCPUAffinity=2 x\nCPUAffinity=2\n"
        ),
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    host = read(root)
    assert host.kernel is not None
    assert str(host.kernel.services) == "2-3"
    assert str(plan(vm(), host).housekeeping) == "2-3"
    at = "/run/systemd/system.conf.d/a.conf"
    assert host.warnings == (f"{at}: CPUAffinity=2 x is no list of CPUs",)


def test_isolated_cpus_are_spared_and_told(tmp_path: Path) -> None:
    """Real-time VMs get dynticks CPUs, others only where nothing else is free."""
    host = read(write_host(tmp_path, cores=8, nohz_full="4-7"))
    assert own(plan(vm("realtime = true"), host)) == "4-5"
    assert own(plan(vm(), host)) == "2-3"
    decided = plan(vm(vcpus=4), host)
    assert (own(decided), decided.score["on_isolated"]) == ("4-7", 1)
    assert any("isolated CPUs, 4-7" in warning for warning in decided.warnings)
    floating = parse_vm('name = "a"\ncpu.vcpus = 1\nmemory.size = "64MiB"', folder=Path("/vm"))
    assert str(plan(floating, host).vcpus[0].cpus) == "0-3"


def test_a_reservation_that_costs_a_node_is_told(tmp_path: Path) -> None:
    """With two CPUs of each node given to the host a VM needs both nodes."""
    host = read(write_host(tmp_path, packages=2, cores=4, nodes=2))
    given = plan(vm(vcpus=4), host, housekeeping=CpuSet.parse("0-1,4-5"))
    assert given.score["nodes"] == 2
    assert any("2 nodes instead of 1, since CPUs 0-1,4-5" in each for each in given.warnings)
    chosen = plan(vm(vcpus=4), host)
    assert (own(chosen), str(chosen.housekeeping)) == ("4-7", "0-1")


def test_nodes_of_one_package_are_near_where_no_distance_is_told(tmp_path: Path) -> None:
    """Those that share an L3 are nearer still; that it is a guess is told."""
    root = write_host(tmp_path, packages=2, cores=4, nodes=4, l3_cores=4)
    for node in range(4):
        (root / f"{NODE}/node{node}/distance").unlink()
    taken = Holding(name="a", uuid=OTHER, dedicated=CpuSet.parse("0"))
    decided = plan(vm(vcpus=4), read(root), (taken,))
    assert [cell.node for cell in decided.cells] == [2, 3]
    assert decided.score["distance"] == 24
    assert any("tells no distances" in warning for warning in decided.warnings)


def test_a_cpu_that_two_nodes_claim_is_counted_once(tmp_path: Path) -> None:
    """It is the first one's."""
    root = write_host(tmp_path, packages=2, cores=4, nodes=2)
    (root / f"{NODE}/node1/cpumap").write_text("ff")
    with pytest.raises(
        PlanError, match=r"at most 6: free are 2 cores on node 0, 4 cores on node 1"
    ):
        plan(vm(vcpus=8), read(root))
    assert len(plan(vm(vcpus=6), read(root)).dedicated_cpus) == 6


def test_memory_only_nodes_are_taken_by_name(tmp_path: Path) -> None:
    """A cell without vCPUs gets slow memory if it names the node; the refusal says so."""
    root = write_host(tmp_path, packages=2, cores=4, nodes=2, memory_mib=2048)
    (root / f"{NODE}/node1/cpumap").write_text("00")
    host = read(root)
    cells = 'size = "512MiB"\n[[memory.cell]]\nvcpus = "0-1"\nsize = "256MiB"\n'
    cells += '[[memory.cell]]\nsize = "256MiB"\n'
    assert [cell.node for cell in plan(vm(memory=cells), host).cells] == [0, 0]
    named = plan(vm(memory=f"{cells}node = 1\n"), host)
    assert [cell.node for cell in named.cells] == [0, 1]
    with pytest.raises(PlanError, match=r"node 1 with memory only: by memory\.cell and its node"):
        plan(vm(memory='size = "4GiB"'), host)
