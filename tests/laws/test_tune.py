"""``tune`` never worsens: what kvmhooks wrote stays, and so does a place that is as good.

A tuned domain's place is held against its own pins by the planner's objective, and by an oracle
that shares no code with it: it reads both documents with ElementTree and knows the host by its
description alone.
"""

from __future__ import annotations

from contextlib import suppress
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
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.tuning.replan import replan
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

    First what no vCPU may have (CPUs that are not there, others' CPUs, a guest cell on several
    nodes, too few CPUs for all), then as the objective ranks it: guest cells that share a node,
    nodes, far devices, isolated CPUs, shared cores, L3 caches, cores. The
    last three are nothing to vCPUs that float.
    """
    root = ET.fromstring(document)  # noqa: S314 -- our own
    threads, isolated = DESCRIBED[at].threads, CpuSet.parse(DESCRIBED[at].isolated)
    pins = pins_of(root)
    used = [cpu for cpus in pins.values() for cpu in cpus]
    here = {cpu for cpu in used if cpu < 8 * threads}
    nodes = {cpu // (4 * threads) for cpu in here}
    by_cell = _nodes_of_cells(root, pins, threads)
    apart = sum(len(on_nodes) - 1 for on_nodes in by_cell)
    together = max(0, len(by_cell) - len(set().union(*by_cell)))
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
        apart,
        max(
            -(-sum(other <= cpus for other in pins.values()) // len(_room(cpus, set(isolated))))
            for cpus in pins.values()
        ),
        together,
        len(nodes | bound),
        sum(by_bus[bus] not in nodes for bus in cards),
        sum(map(noise, here)) if is_realtime else 0,
        company,
        len({cpu // (2 * threads) for cpu in here}),
        len(on),
    )
    return numbers[:8] if floats else numbers


def _nodes_of_cells(root: ET.Element, pins: dict[int, set[int]], threads: int) -> list[set[int]]:
    """The host nodes of each guest cell: of its vCPUs, and of its memory where that is bound."""
    bound = {
        each.attrib["cellid"]: listed(each.attrib["nodeset"])
        for each in root.findall("numatune/memnode")
    }
    return [
        {cpu // (4 * threads) for vcpu in listed(cell.attrib["cpus"]) for cpu in pins[vcpu]}
        | bound.get(cell.attrib["id"], set())
        for cell in root.findall("cpu/numa/cell")
    ]


def _room(cpus: set[int], isolated: set[int]) -> set[int]:
    """The CPUs that a thread runs on: nothing moves one that floats to an isolated CPU."""
    return (cpus - isolated if len(cpus) > 1 else cpus) or {min(cpus)}


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
    memory, numa = f"<memory mode='strict' nodeset='{nodes}'/>", ""
    if cores % 2 == 0 and draw(st.booleans()):
        halves = (f"0-{count // 2 - 1}", f"{count // 2}-{count - 1}")
        numa = "<numa>" + "".join(
            f"<cell id='{at}' cpus='{half}' memory='512' unit='MiB'/>"
            for at, half in enumerate(halves)
        ) + "</numa>"  # fmt: skip
        memory = "".join(
            f"<memnode cellid='{at}' mode='strict' nodeset='{draw(st.sampled_from('01'))}'/>"
            for at in range(draw(st.sampled_from([0, 2])))
        )
    return (
        "<domain type='kvm'><name>vm</name><uuid>0b6f3f5e-42b8-4d57-93c1-0f6d8c6a1c02</uuid>"
        f"<memory unit='MiB'>1024</memory><vcpu>{count}</vcpu>"
        f"<cputune>{pins}{emulator}{realtime}</cputune>"
        f"<numatune>{memory}</numatune>"
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<cpu mode='host-passthrough'><topology sockets='1' cores='{cores}' threads='{guest}'/>"
        f"{numa}</cpu><devices>{card if bus else ''}</devices></domain>"
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
    event(f"stays: {kept == now}, cells: {len(list(ET.fromstring(document).iter('cell')))}")  # noqa: S314
    if any("not placed" in sentence for sentence in tuned.advice):
        assert kept == now
        return
    assert after[:3] == (0, 0, 0)
    assert after <= before
    assert (kept == now) or tuned.gains


@settings(max_examples=80)
@given(st.data())
def test_a_running_domain_is_placed_as_tune_would(data: st.DataObject) -> None:
    """`replan` and `tune` give one answer; twice is once."""
    at = data.draw(st.integers(0, len(DESCRIBED) - 1))
    host = described(at)
    document = data.draw(pinned(DESCRIBED[at].threads))
    tuned = tune(document, host, only={"cpu", "memory"})
    try:
        found = replan(document.encode(), host)
    except PlanError as error:
        event(f"replan refuses: {error.problem.at}")
        place = [change.at for change in tuned.changes if change.at.startswith("cpu/numa")]
        assert place or any("not placed" in sentence for sentence in tuned.advice)
        return
    event(f"moves: {found.moves}")
    placed = pins_of(ET.fromstring(tuned.document))  # noqa: S314 -- our own
    assert {vcpu: set(cpus) for vcpu, cpus in found.pins.items()} == placed
    assert not replan(found.document, host).moves


@st.composite
def divided(draw: st.DrawFn) -> str:
    """A domain with guest cells of any sizes, in any order, with huge pages in some of them."""
    count = draw(st.integers(1, 3))
    owners = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    sizes = draw(
        st.lists(st.sampled_from([0, 255, 256, 512, 768, 1024]), min_size=count, max_size=count)
    )
    cells = ""
    for cell, size in enumerate(sizes):
        mine = ",".join(str(vcpu) for vcpu, owner in enumerate(owners) if owner == cell)
        cpus = f"cpus='{mine}'" if mine else ""
        cells += f"<cell id='{cell}' {cpus} memory='{size}' unit='MiB'/>"
    sets = st.none() | st.sampled_from(["0", "1", "0-1"])
    pages = "".join(
        f"<page size='{size}' unit='MiB'{'' if cell is None else f' nodeset={cell!r}'}/>"
        for size, cell in draw(
            st.lists(st.tuples(st.sampled_from([2, 16, 1024]), sets), max_size=2)
        )
    )
    backing = draw(st.sampled_from(["", f"<hugepages>{pages}</hugepages>"]))
    return (
        "<domain type='kvm'><name>vm</name><uuid>0b6f3f5e-42b8-4d57-93c1-0f6d8c6a1c02</uuid>"
        f"<memory unit='MiB'>{sum(sizes)}</memory><memoryBacking>{backing}</memoryBacking>"
        f"<vcpu>{len(owners)}</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>"
        f"<cpu mode='host-passthrough'><numa>{cells}</numa></cpu></domain>"
    )


@settings(max_examples=150)
@given(divided())
def test_any_guest_cells_have_an_answer(document: str) -> None:
    """They are imported, tuned and replanned, or refused in words; pins fit the cells as they are.

    So the vCPUs of a cell that is bound to a node are there, whichever they are.
    """
    host = described(0)
    try:
        tuned = tune(document, host)
    except (PlanError, SpecError) as error:
        event(f"refused: {error.problem.at if isinstance(error, PlanError) else 'the domain'}")
        return
    read_domain(document)
    with suppress(PlanError):
        replan(document.encode(), host)
    root = ET.fromstring(tuned.document)  # noqa: S314 -- our own
    pins = pins_of(root)
    cells = {each.attrib["id"]: each for each in root.findall("cpu/numa/cell")}
    bound = root.findall("numatune/memnode")
    event(f"bound: {bool(bound)}")
    for each in bound:
        vcpus = cells[each.attrib["cellid"]].get("cpus")
        for vcpu in listed(vcpus) & pins.keys() if vcpus else ():
            assert {cpu // 4 for cpu in pins[vcpu]} == listed(each.attrib["nodeset"])
