"""``tune`` never worsens: what kvmhooks wrote stays, and so does a place that is as good.

A tuned domain's place is held against its own pins by the planner's objective, and by an oracle
that shares no code with it: it reads both documents with ElementTree and knows the host by its
description alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.inventory.usage import Holding
from kvmhooks.libvirt.edit.toml import to_toml
from kvmhooks.libvirt.tuning.tune import tune
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import plan
from kvmhooks.spec import parse_vm
from kvmhooks.spec.profiles import PROFILES
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import FakeHost
from tests.golden.cases import CASES, golden_host, golden_plan
from tests.laws.strategies import claims_on, hosts, placements


@pytest.mark.parametrize(("vm", "host"), CASES)
def test_what_kvmhooks_wrote_stays(vm: str, host: str) -> None:
    """`kvmhooks xml X | kvmhooks tune` changes nothing, of each golden VM on its golden host."""
    if host.endswith("+qemu"):
        pytest.skip("libvirt has no such machine")
    tuned = tune(domain_xml(golden_plan(vm, host)), golden_host(host.partition("+")[0]))
    assert (tuned.changes, tuned.gains) == ((), ())


@settings(max_examples=120)
@given(hosts, st.data())
def test_what_kvmhooks_wrote_stays_on_any_host(host: Host, data: st.DataObject) -> None:
    """So it is with any VM of any profile beside any others, also when it runs and holds it all."""
    placement = data.draw(st.sampled_from(["dedicated", "dedicated", "shared"]))
    document = data.draw(placements(placement=placement))
    profile = data.draw(st.none() | st.sampled_from(sorted(PROFILES)))
    if profile is not None:
        document["profile"] = profile
    if placement == "dedicated" and data.draw(st.booleans()):
        document["cpu"]["realtime"] = True
    if placement == "shared":
        document["isolation"]["exclusive"] = False
    claims = data.draw(claims_on(host))
    try:
        spec = parse_vm(to_toml(document), folder=Path("/vms"))
        decided = plan(spec, host, claims)
    except (PlanError, SpecError):
        assume(False)
    tuned = tune(domain_xml(decided), host, claims)
    assert tuned.changes == ()
    own = Holding(
        name="vm",
        uuid=decided.uuid,
        dedicated=decided.dedicated_cpus,
        memory=tuple(
            (cell.node, cell.memory_kib) for cell in decided.cells if cell.node is not None
        ),
    )
    if not any(cell.is_huge for cell in decided.cells):
        assert tune(domain_xml(decided), host, [*claims, own]).changes == ()


CARDS = (FakePci("0000:3b:00.0", node=0), FakePci("0000:af:00.0", node=1))
DESCRIBED = [
    FakeHost(
        packages=2, cores=4, threads=threads, nodes=2, l3_cores=2, numbering="adjacent",
        memory_mib=8192, isolated=isolated, pci=CARDS,
    )
    for threads in (1, 2)
    for isolated in ("", "4-7")
]  # fmt: skip
"""Eight cores on two nodes, two to an L3: CPUs are numbered through all of it in order."""


@cache
def described(at: int) -> Host:
    """One of them, written as a tree and read back."""
    with TemporaryDirectory() as folder:
        DESCRIBED[at].write(Path(folder))
        return read(folder, ("cpus", "nodes", "kernel", "kvm", "pci"))


def oracle(document: bytes | str, at: int, foreign: set[int]) -> tuple[int, ...]:
    """Measure how a domain's vCPUs lie, by its XML and the host's description; less is better.

    First what no vCPU may have (CPUs that are not there, others' CPUs, too few for all), then as
    the objective ranks it: nodes, far devices, isolated CPUs, shared cores, L3 caches, cores. The
    last three are nothing to vCPUs that float.
    """
    root = ET.fromstring(document)  # noqa: S314 -- our own
    threads, isolated = DESCRIBED[at].threads, CpuSet.parse(DESCRIBED[at].isolated)
    pins = pins_of(root)
    used = [cpu for cpus in pins.values() for cpu in cpus]
    here = {cpu for cpu in used if cpu < 8 * threads}
    nodes = {cpu // (4 * threads) for cpu in here}
    bound = {node for each in root.findall("numatune/*") for node in listed(each.attrib["nodeset"])}
    cards = [each.attrib["bus"] for each in root.findall("devices/interface/source/address")]
    by_bus = {"0x3b": 0, "0xaf": 1}
    guest = max(int(each.attrib["threads"]) for each in root.findall("cpu/topology"))
    on: dict[int, set[int]] = {}
    for vcpu, cpus in pins.items():
        for cpu in cpus:
            on.setdefault(cpu // threads, set()).add(vcpu // guest)
    company = sum(len(guests) for guests in on.values() if len(guests) > 1)
    floats = any(len(cpus) > 1 for cpus in pins.values())
    is_realtime = root.find("cputune/vcpusched") is not None and bool(isolated) and not floats

    def noise(cpu: int) -> int:
        first = cpu // threads * threads
        siblings = set(range(first, first + threads))
        return 0 if siblings <= set(isolated) else 1 if cpu in isolated else 2

    numbers = (
        len(set(used) - here),
        len(here & foreign),
        max(
            -(-sum(other <= cpus for other in pins.values()) // len(cpus)) for cpus in pins.values()
        ),
        len(nodes | bound),
        sum(by_bus[bus] not in nodes for bus in cards),
        sum(map(noise, here)) if is_realtime else 0,
        company,
        len({cpu // (2 * threads) for cpu in here}),
        len(on),
    )
    return numbers[:6] if floats else numbers


def pins_of(root: ET.Element) -> dict[int, set[int]]:
    """The CPUs of each vCPU."""
    pins = root.findall("cputune/vcpupin")
    return {int(pin.attrib["vcpu"]): listed(pin.attrib["cpuset"]) for pin in pins}


def listed(text: str) -> set[int]:
    """The numbers of a list of CPUs or nodes."""
    ends = [part.split("-") for part in text.split(",")]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


@st.composite
def pinned(draw: st.DrawFn, threads: int) -> str:
    """A domain with a CPU for each vCPU or some for all, most where nobody would put them."""
    guest = draw(st.sampled_from([1, threads]))
    cores = draw(st.integers(1, 4))
    count = guest * cores
    cpus = draw(
        st.lists(st.integers(threads, 8 * threads - 1), min_size=count, max_size=count, unique=True)
        | st.integers(threads, 8 * threads - count).map(lambda at: list(range(at, at + count)))
        | st.lists(st.integers(0, 8 * threads + 1), min_size=count, max_size=count)
    )
    sets = [str(cpu) for cpu in cpus]
    if draw(st.integers(0, 3)) == 0:
        sets = [str(CpuSet(cpus) | CpuSet((draw(st.integers(0, 8 * threads - 1)),)))] * count
    pins = "".join(f"<vcpupin vcpu='{at}' cpuset='{text}'/>" for at, text in enumerate(sets))
    emulator = draw(st.sampled_from(["", "<emulatorpin cpuset='0'/>"]))
    realtime = draw(st.sampled_from(["", f"<vcpusched vcpus='0-{count - 1}' scheduler='fifo'/>"]))
    bus = draw(st.sampled_from(["", "0x3b", "0xaf"]))
    card = (
        "<interface type='hostdev' managed='yes'><source><address type='pci' domain='0x0000' "
        f"bus='{bus}' slot='0x00' function='0x0'/></source></interface>"
    )
    nodes = draw(st.sampled_from(["0", "1", "0-1"]))
    return (
        "<domain type='kvm'><name>vm</name><uuid>0b6f3f5e-42b8-4d57-93c1-0f6d8c6a1c02</uuid>"
        f"<memory unit='MiB'>1024</memory><vcpu>{count}</vcpu>"
        f"<cputune>{pins}{emulator}{realtime}</cputune>"
        f"<numatune><memory mode='strict' nodeset='{nodes}'/></numatune>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<cpu mode='host-passthrough'><topology sockets='1' cores='{cores}' threads='{guest}'/>"
        f"</cpu><devices>{card if bus else ''}</devices></domain>"
    )


@settings(max_examples=120)
@given(st.data())
def test_a_tuned_domain_is_at_least_as_good_as_it_was(data: st.DataObject) -> None:
    """By the objective where the pins may stay, and by the oracle in any case; twice is once.

    A domain is not left on CPUs of the host or others', and says what it gains if it moves.
    """
    at = data.draw(st.integers(0, len(DESCRIBED) - 1))
    host = described(at)
    document = data.draw(pinned(DESCRIBED[at].threads))
    taken = data.draw(st.sets(st.integers(2, 8 * DESCRIBED[at].threads - 1), max_size=3))
    other = Holding(
        name="other", uuid="00000001-0000-0000-0000-000000000000", exclusive=CpuSet(taken)
    )
    tuned = tune(document, host, [other], only={"cpu", "memory"})
    assert tune(tuned.document, host, [other], only={"cpu", "memory"}).changes == ()
    before, after = oracle(document, at, taken), oracle(tuned.document, at, taken)
    both = (ET.fromstring(each) for each in (document, tuned.document))  # noqa: S314 -- our own
    kept, now = map(pins_of, both)
    event(f"stays: {kept == now}")
    if any("not placed" in sentence for sentence in tuned.advice):
        assert kept == now
        return
    assert after[:2] == (0, 0)
    assert after <= before
    assert (kept == now) or tuned.gains
