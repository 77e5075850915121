"""Whole plans, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.placement import Cell, GuestCpu, Plan, Topology, VcpuPin, claim, plan
from kvmhooks.placement.search.objective import ORDER
from kvmhooks.spec import Isolation, VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.fakehost import write_host
from tests.golden.cases import golden_host, golden_plan, golden_vm

LEAST = 'name = "a"\n'
FIRST = "00000000-0000-0000-0000-000000000001"


def vm(text: str) -> VmSpec:
    """A VM of 1 GiB, unless the text says more."""
    size = "" if "size = " in text else '\nmemory.size = "1GiB"'
    return parse_vm(LEAST + text + size, folder=Path("/"))


def held(cpus: str, uuid: str = FIRST) -> Claim:
    """The claim of another VM."""
    return Claim(driver="qemu", uuid=uuid, name="other", exclusive=CpuSet.parse(cpus))


def test_a_dedicated_vm_beside_another() -> None:
    """Another VM's CPUs are left alone; whole cores of one node, siblings as guest threads."""
    spec = vm('cpu = { vcpus = 4, placement = "dedicated" }\nisolation.exclusive = true')
    made = plan(spec, golden_host("server"), (held("1,9"),))
    assert made == Plan(
        spec=evolve(spec, isolation=Isolation(exclusive=True, strict=False)),
        uuid="42a3f8ba-418c-53f3-a15d-2f033c4a2b9a",
        accel="kvm",
        cpu=GuestCpu(model="host"),
        topology=Topology(cores=2, threads=2),
        vcpus=tuple(VcpuPin(at, CpuSet((cpu,))) for at, cpu in enumerate((2, 10, 3, 11))),
        emulator=CpuSet.parse("0,8"),
        iothreads=(),
        cells=(Cell(0, 0, CpuSet.parse("0-3"), 1 << 20, 4),),
        memory_mode="strict",
        dedicated=CpuSet.parse("0-3"),
        vhost=CpuSet.parse("0,8"),
        hardware=made.hardware,  # what is tested of it stands in the golden files
        macs=(),
        exclusive=CpuSet.parse("2-3,10-11"),
        housekeeping=CpuSet.parse("0,8"),
        score={
            **dict.fromkeys(ORDER, 0),
            "nodes": 1,
            "unevenness": 16,
            "l3": 1,
            "shared_l3": 1,
            "cores": 2,
            "node_blocks": -16,
            "l3_blocks": -16,
        },
        why=(
            "4 vCPUs on 2 whole cores of node 0: one node is enough",
            "1 L3 cache: no fewer would do",
            (
                "1 L3 cache shared with the host and QEMU's other threads, CPUs 0,8: "
                "isolation.cache_ways divides it where the hardware can"
            ),
            "2 guest threads in a core, as siblings of the host",
            "kept for the host: CPUs 0,8",
            "QEMU's other threads: CPUs 0,8",
            "memory in ordinary pages, cell 0 from node 0",
            "KVM: /dev/kvm works on this host",
        ),
        warnings=(),
    )


def test_the_host_has_two_cpus_beside_a_core_that_is_held_in_part() -> None:
    """The other thread alone of a core that another VM holds is too little for the host."""
    spec = vm('cpu = { vcpus = 2, placement = "dedicated" }')
    decided = plan(spec, golden_host("chiplets"), (held("0"),))
    assert (str(decided.housekeeping), str(decided.emulator)) == ("2-3", "2-3")


def test_a_vms_own_claim_does_not_hinder_it() -> None:
    """A VM that is planned again, while its claim stands, gets the same plan."""
    decided = golden_plan("dedicated", "server")
    assert plan(decided.spec, golden_host("server"), (claim(decided),)) == decided


def test_the_claim_of_a_plan() -> None:
    """It holds the CPUs, the pages of each node, and whether it is strict."""
    assert claim(golden_plan("wide", "server")) == Claim(
        driver="kvm-launch",
        uuid=golden_plan("wide", "server").uuid,
        name="wide",
        exclusive=CpuSet.parse("4-7,12-15"),
        demands=[HugePageDemand(1, 1_048_576, 4)],
    )
    assert claim(golden_plan("crowd", "chiplets")).of(HugePageDemand) == (
        HugePageDemand(0, 2048, 256),
        HugePageDemand(1, 2048, 256),
    )


REFUSALS = [
    (
        'cpu = { vcpus = 16, placement = "dedicated" }',
        "server",
        (),
        (
            "cpu.vcpus: found 16 dedicated, which take 8 cores with 2 free threads, expected at "
            "most 14: free are 3 cores with 2 free threads on node 0, 4 cores with 2 free threads "
            "on node 1 (CPUs 0,8 are kept for the host); shared vCPUs would fit on nodes 0 and 1"
        ),
    ),
    (
        'cpu = { vcpus = 4, placement = "dedicated", threads = 1, smt = "isolate" }',
        "laptop",
        (held("1"),),
        (
            "cpu.vcpus: found 4 dedicated, which take 4 whole cores, expected at most 2: free are "
            "2 whole cores on node 0 (CPUs 0 are kept for the host, 1 are other VMs' own); shared "
            "vCPUs would fit on node 0"
        ),
    ),
    (
        'cpu = { vcpus = 6, placement = "dedicated", smt = "isolate" }\nmemory.cells = 1',
        "server",
        (),
        (
            "memory.cells: found cell 0, which needs 6 whole cores on one node, expected a node "
            "with as many: 3 whole cores on node 0, 4 whole cores on node 1; relaxing cpu.smt to "
            "share would fit on node 0"
        ),
    ),
    (
        'cpu = { vcpus = 4, placement = "dedicated", threads = 2 }\nmemory.cells = 4',
        "server",
        (),
        "memory.cells: found 4, expected a divisor of the 2 cores",
    ),
    (
        'cpu.vcpus = 1\nmemory.size = "16GiB"',
        "laptop",
        (),
        "memory.size: found 16GiB, expected no more than there is: 4096MiB on node 0",
    ),
    (
        'cpu.vcpus = 2\nmemory.size = "6GiB"\nmemory.hugepages = "2MiB"',
        "server",
        (),
        (
            "memory.hugepages: found 3072 pages of 2MiB, expected no more than are free: 1024 "
            "pages of 2MiB on node 0, 1024 pages of 2MiB on node 1; setting memory.allocate would "
            "fit on node 0 (or: echo 3072 > /sys/devices/system/node/node0/hugepages/"
            "hugepages-2048kB/nr_hugepages)"
        ),
    ),
    (
        'cpu.vcpus = 1\nmachine.accel = "kvm"',
        "old-kernel",
        (),
        'machine.accel: found "kvm", expected a host whose /dev/kvm works, or "tcg"',
    ),
    (
        'cpu = { vcpus = 2, placement = "dedicated" }',
        "chiplets",
        (held("0-13"),),
        (
            "cpu.placement: found dedicated, but every online CPU is isolated by the kernel or "
            "another VM's own, expected CPUs to share with the host: for shared vCPUs, or "
            "for QEMU's other "
            "threads"
        ),
    ),
]


@pytest.mark.parametrize(("text", "host", "claims", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_does_not_fit_names_what_binds(
    text: str, host: str, claims: tuple[Claim, ...], message: str
) -> None:
    """The message has the key that binds, what was asked for and what there is."""
    with pytest.raises(PlanError) as raised:
        plan(vm(text), golden_host(host), claims)
    assert str(raised.value) == message


def test_a_host_without_cpus_is_refused() -> None:
    """Nothing is planned for a host of which nothing is known."""
    with pytest.raises(PlanError, match="host: found no online CPU"):
        plan(golden_vm("tiny"), Host())


@pytest.mark.parametrize(
    ("vcpus", "told"),
    [
        (
            5,
            (
                (
                    "cpu.vcpus: 5 make no whole cores of 2 threads: each has a core, the rest of "
                    "which others may get; 4 or 6 would have all of theirs"
                ),
            ),
        ),
        (6, ()),
    ],
)
def test_a_count_that_makes_no_whole_cores_is_told(vcpus: int, told: tuple[str, ...]) -> None:
    """Its vCPUs have a core each: a guest does not take siblings for cores."""
    spec = vm(f'cpu = {{ vcpus = {vcpus}, placement = "dedicated" }}')
    decided = plan(spec, golden_host("server"))
    assert decided.warnings == told
    assert decided.score["company"] == 0


def test_siblings_that_a_person_calls_cores_are_told() -> None:
    """Only who says how many threads there are gets a guest that sees less than is true."""
    spec = vm('cpu = { vcpus = 12, placement = "dedicated", threads = 1 }')
    assert (
        "cpu.threads: the guest sees each vCPU as a core, though some are siblings; without it, or "
        "with 2, it sees that"
    ) in plan(spec, golden_host("server")).warnings


def test_derived_addresses_are_warned_of() -> None:
    """An address that another host would derive as well is told, unless the VM has a UUID."""
    spec = vm("cpu.vcpus = 1\n[[net]]\ntype = 'tap'\ndevice = 'tap0'\n[memory]\nsize = '1GiB'")
    assert plan(spec, golden_host("laptop")).warnings == (
        (
            "net[0].mac: derived from the VM's name: on another host a VM of the same name has the "
            "same; give mac, or uuid"
        ),
    )
    assert golden_plan("network", "laptop").warnings == ()


def test_no_cell_is_without_memory(tmp_path: Path) -> None:
    """One huge page makes one cell, however its vCPUs would have to be divided."""
    host = read(write_host(tmp_path, packages=2, cores=1, nodes=2, hugepages={2048: (4, 4)}))
    text = (
        'name = "a"\ncpu = {{ vcpus = 2, ratio = 1 }}\n'
        'memory = {{ size = "{}MiB", hugepages = "2MiB" }}'
    )
    two = plan(parse_vm(text.format(4), folder=Path("/")), host)
    assert [cell.memory_kib for cell in two.cells] == [2048, 2048]
    with pytest.raises(PlanError):
        plan(parse_vm(text.format(2), folder=Path("/")), host)
