"""A VM holds the same however it is known: by its plan, a printed claim, its domain or a record.

Another VM is given all that one way to know it leaves out: two VMs then have one CPU, one device,
one page of memory.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from attrs import evolve, fields
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.host import Host
from kvmhooks.inventory.usage import Holding, from_json
from kvmhooks.isolate.claims import xml
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.system.process_stat import start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, Together, claim, plan, plan_all
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.placement.search.capacity import measure
from kvmhooks.show.printed import printed
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.structure import structure
from kvmhooks.survey.records import recorded
from kvmhooks.survey.running import defined_domains, running_domains
from kvmhooks.values import CpuSet
from tests.golden.cases import CASES, golden_host, golden_plan
from tests.laws.strategies import hosts, placements

HELD: Final = [field.name for field in fields(Holding)]

LIBVIRTS: Final = sorted({case for case in CASES if not case[1].endswith("+qemu")})
"""The golden cases that libvirt can run."""


def by_claim(decided: Plan, _: Host) -> Holding:
    """Give back by ``--claims`` what ``kvmhooks claim`` prints."""
    return from_json(json.loads(printed(decided, "claim")))


def by_record(decided: Plan, _: Host) -> Holding:
    """The record of a supervisor that has yet to start QEMU."""
    document = {
        "name": decided.name,
        "uuid": decided.uuid,
        "state": "claimed",
        "qemu": 0,
        "supervisor": os.getpid(),
        "supervisor_start": start_time(System(), os.getpid()),
        "holding": of_plan(decided).to_json(),
    }
    with TemporaryDirectory() as folder:
        path = Path(folder, decided.name, "status.json")
        path.parent.mkdir()
        path.write_text(json.dumps(document))
        (held,), problems = recorded(Path(folder), System())
    assert problems == []
    return held


def by_definition(decided: Plan, host: Host) -> Holding:
    """Its domain, which is defined."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "etc/libvirt/qemu/vm.xml")
        path.parent.mkdir(parents=True)
        path.write_text(domain_xml(decided))
        (held,), problems = defined_domains(System(folder), host)
    assert problems == []
    return held


def by_domain(decided: Plan, host: Host) -> Holding:
    """Its domain, which runs: a thread for each vCPU that is there, and its groups of resctrl.

    Its huge pages are mapped.
    """
    text = domain_xml(decided)
    text = text[text.index("<domain") :].replace("<domain ", "<domain id='7' ", 1)
    vcpu = xml.parse(text.encode()).find("vcpu")
    assert vcpu is not None
    there = int(vcpu.get("current") or vcpu.text)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        rows = ""
        for pin in decided.vcpus:
            thread = f" pid='{100 + pin.vcpu}'" if pin.vcpu < there else ""
            rows += f"<vcpu id='{pin.vcpu}'{thread}/>"
            if thread:
                status = root / f"proc/{100 + pin.vcpu}/status"
                status.parent.mkdir(parents=True)
                status.write_text(f"Cpus_allowed_list:\t{pin.cpus}\n")
        path = root / "run/libvirt/qemu/vm.xml"
        path.parent.mkdir(parents=True)
        path.write_text(f"<domstatus><vcpus>{rows}</vcpus>{text}</domstatus>")
        schemata = root / "sys/fs/resctrl/qemu-7-vm-vcpus_0/schemata"
        schemata.parent.mkdir(parents=True)
        schemata.write_text(
            "L3:" + ";".join(f"{share.cache}={share.mask:x}" for share in decided.caches) + "\n"
            "MB:" + ";".join(f"{cache}={percent}" for cache, percent in decided.bandwidth) + "\n"
        )
        (held,), problems = running_domains(System(folder), host)
    assert (problems, held.hugepages) == ([], ())
    return evolve(held, hugepages=of_plan(decided).hugepages)


WAYS: Final[dict[str, Callable[[Plan, Host], Holding]]] = {
    "claim": by_claim,
    "record": by_record,
    "definition": by_definition,
    "domain": by_domain,
}


def told(held: Holding, host: Host) -> dict[str, Any]:
    """All that a holding keeps others from, apart from how it says so.

    A VM's CPUs are no other's, be they exclusive or dedicated, or idle beside those.
    """
    return {
        "name": held.name,
        "uuid": held.uuid,
        "alone": held.alone(host),
        "helpers": held.helpers,
        "floating": Counter(dict(held.floating)),
        "memory": dict(held.memory),
        "hugepages": Counter(held.hugepages),
        "ways": dict(held.ways),
        "bandwidth": dict(held.bandwidth),
        "pci": set(held.pci),
        "mdevs": set(held.mdevs),
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("vm", "place"), LIBVIRTS)
def test_a_golden_vm_holds_the_same_however_it_is_known(vm: str, place: str, way: str) -> None:
    """Its CPUs, memory, caches and devices."""
    decided, host = golden_plan(vm, place), golden_host(place.partition("+")[0])
    assert told(WAYS[way](decided, host), host) == told(of_plan(decided), host)


def test_every_field_of_a_holding_is_held_by_some_golden_vm() -> None:
    """So that whatever a holding comes to have is looked at.

    ``keeps_siblings`` and ``has_key`` are of domains that run.
    """
    held = [of_plan(golden_plan(*case)) for case in LIBVIRTS]
    for vm, place in (("isolated", "divided"), ("confidential_sev", "chiplets")):
        held += [by_domain(golden_plan(vm, place), golden_host(place))]
    assert [name for name in HELD if any(getattr(each, name) for each in held)] == HELD


@st.composite
def rich_placements(draw: st.DrawFn) -> dict[str, Any]:
    """A VM anywhere, with memory that is added, vCPUs that are plugged in, and shares of caches."""
    document = draw(
        placements(placement="dedicated") | placements(placement="shared", exclusive=False)
    )
    if document["cpu"]["vcpus"] > 1 and draw(st.booleans()):
        document["cpu"]["current"] = draw(st.integers(1, document["cpu"]["vcpus"]))
    if document["cpu"]["placement"] == "shared":
        document["cpu"] |= draw(st.fixed_dictionaries({}, optional={"ratio": st.just(4)}))
    if draw(st.booleans()):
        sizes = st.sampled_from(["128MiB", "1GiB", "9GiB"])
        cells = document["memory"].get("cells", 1)
        added = st.fixed_dictionaries({"size": sizes, "cell": st.integers(0, cells - 1)})
        document["memory"] |= {"maximum": "1TiB", "dimm": draw(st.lists(added, max_size=2))}
        document["memory"]["virtio"] = draw(st.lists(added, max_size=1))
    return document


def spec_of(document: dict[str, Any], name: str) -> VmSpec:
    """A VM of that description."""
    return structure(document | {"name": name}, Path("/vms"))


@settings(max_examples=25)
@given(rich_placements(), hosts)
def test_a_vm_holds_the_same_however_it_is_known(document: dict[str, Any], host: Host) -> None:
    """On any host; a vCPU that floats over a single CPU counts as one that has it to itself."""
    try:
        decided = plan(spec_of(document, "a"), host)
    except PlanError:
        return
    if any(len(cpus) == 1 for cpus, _ in of_plan(decided).floating):
        return
    planned = told(of_plan(decided), host)
    for way, known in WAYS.items():
        found = told(known(decided, host), host)
        assert found == planned, way


@settings(max_examples=25)
@given(st.tuples(rich_placements(), rich_placements()), hosts)
def test_two_together_are_one_beside_the_others_claim(
    documents: tuple[dict[str, Any], dict[str, Any]], host: Host
) -> None:
    """A VM that is planned beside a printed claim lives where both would be put together."""
    first, second = spec_of(documents[0], "a"), spec_of(documents[1], "b")
    together = plan_all([first, second], host, tries=2)
    if not together.plans or together.plans[0].spec.name != "a" or first.cpu.ratio is not None:
        return  # a claim does not tell a ratio, which is kept beside VMs planned together
    printed_claim = by_claim(together.plans[0], host)
    beside = plan_all([second], host, [printed_claim], tries=1)
    assert together.plans[1:] == beside.plans
    assert refusals_of(together) == refusals_of(beside)


def refusals_of(together: Together) -> dict[str, str]:
    """The refusals of those that do not fit."""
    return {name: str(refusal) for name, refusal in together.refused.items()}


CARDS = """
name = "{name}"
cpu.vcpus = 2
memory.size = "1GiB"
"""
GIVEN: Final = [
    '[[pci]]\naddress = "0000:b0:00.0"\nmanaged = false',
    '[[pci]]\naddress = "0000:b0:00.0"\nmanaged = true',
    '[[net]]\ntype = "hostdev"\naddress = "0000:b0:00.0"\nmanaged = false',
    '[[nvme]]\naddress = "0000:b1:00.0"\nmanaged = false',
    '[[mdev]]\nuuid = "c2177883-f1bb-47f0-914d-32a22e3a8804"',
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", GIVEN, ids=range(len(GIVEN)))
def test_a_device_is_one_vms(device: str, way: str) -> None:
    """Also one that nobody binds, and one that is made: the second VM is refused."""
    host = golden_host("cards")
    first, second = (
        parse_vm(CARDS.format(name=name) + device, folder=Path("/vms")) for name in "ab"
    )
    held = WAYS[way](plan(first, host), host)
    with pytest.raises(PlanError, match=r"'?a'?"):
        plan(second, host, [held])


def test_cpus_that_can_be_plugged_in_are_nobody_elses() -> None:
    """Four vCPUs of which two are there: no other VM gets the CPUs of the other two."""
    host = golden_host("server")
    document = {
        "cpu": {"vcpus": 4, "current": 2, "placement": "dedicated"},
        "memory": {"size": "1GiB"},
        "isolation": {"exclusive": False},
    }
    decided = plan(spec_of(document, "a"), host)
    assert len(by_domain(decided, host).dedicated) == len(decided.dedicated_cpus) == 4
    more = document | {"cpu": {"vcpus": 12, "placement": "dedicated"}}
    with pytest.raises(PlanError, match=r"cpu\.vcpus"):
        plan(spec_of(more, "b"), host, [by_domain(decided, host)])


def test_idle_siblings_are_nobody_elses() -> None:
    """``smt = "isolate"`` keeps them from others while a domain runs that has no claim."""
    host = golden_host("server")
    document = {
        "cpu": {"vcpus": 2, "placement": "dedicated", "smt": "isolate", "threads": 1},
        "memory": {"size": "1GiB"},
        "isolation": {"exclusive": False},
    }
    decided = plan(spec_of(document, "a"), host)
    assert decided.idle
    eight = document | {"cpu": {"vcpus": 10, "placement": "dedicated"}}
    for way in WAYS.values():
        beside = plan_all([spec_of(eight, "b")], host, [way(decided, host)]).plans
        taken = CpuSet(cpu for each in beside for cpu in each.dedicated_cpus)
        assert taken.isdisjoint(decided.idle | decided.dedicated_cpus)


@settings(max_examples=25)
@given(st.lists(rich_placements(), min_size=1, max_size=2), hosts)
def test_no_node_gives_more_memory_than_it_has(documents: list[dict[str, Any]], host: Host) -> None:
    """Memory that is added (DIMMs, virtio-mem) counts as a VM's own, whatever its pages are."""
    specs = [spec_of(document, f"vm{at}") for at, document in enumerate(documents)]
    given_out: Counter[int] = Counter()
    for decided in plan_all(specs, host, tries=2).plans:
        given_out.update(dict(of_plan(decided).memory))
        memory = decided.spec.memory
        asked = sum(each.size for each in memory.dimm) + sum(each.size for each in memory.virtio)
        asked += 0 if decided.cells[0].is_huge else memory.size
        assert sum(kib for _, kib in of_plan(decided).memory) * 1024 == asked
    rooms = {-1 if node.node is None else node.node: node for node in measure(host, ()).numa_nodes}
    for node, kib in given_out.items():
        room = rooms[node].memory_kib
        assert room is None or kib <= room


GROWING: Final = """
name = "vm"
cpu.vcpus = 4
cpu.placement = "dedicated"
memory.size = "2GiB"
memory.maximum = "64GiB"
"""
PAGED: Final = 'memory.hugepages = "2MiB"\nmemory.allocate = true\n'
ADDED: Final = {
    '[[memory.dimm]]\nsize = "40GiB"': "memory.size: found 2GiB and 40GiB that are added",
    '[[memory.virtio]]\nsize = "40GiB"\nrequested = "1GiB"': "memory.size: found 2GiB and 40GiB",
    '[[memory.dimm]]\nsize = "12GiB"\ncell = 1': "of which cell 1 needs 13GiB on one node",
    f'{PAGED}[[memory.dimm]]\nsize = "40GiB"': "memory.dimm: found 40GiB",
    f'{PAGED}[[memory.virtio]]\nsize = "12GiB"': "cell 0 needs 12GiB",
}


@pytest.mark.parametrize("added", ADDED)
def test_memory_that_is_added_and_not_there_is_refused(added: str) -> None:
    """With how much there is, and what would fit: it is bound to the node of its cell."""
    with pytest.raises(PlanError) as error:
        plan(parse_vm(GROWING + added, folder=Path("/vms")), golden_host("server"))
    assert ADDED[added] in str(error.value)
    assert "MiB" in str(error.value)
    assert "leaving out memory.dimm and memory.virtio would fit" in str(error.value)


@pytest.mark.parametrize("pages", ["false", '"2MiB"'])
@pytest.mark.parametrize("cell", [0, 1])
def test_the_hook_asks_for_no_pages_of_memory_that_is_added(pages: str, cell: int) -> None:
    """It is ordinary memory, also of a guest on huge pages; its node is that of its cell.

    A VM without a word of cells has as many as its added memory names.
    """
    text = f"{GROWING}memory.hugepages = {pages}\nmemory.allocate = true\n".replace(
        "false\nmemory.allocate = true", "false"
    )
    text += f'[[memory.dimm]]\nsize = "1GiB"\ncell = {cell}\n[[memory.virtio]]\nsize = "2GiB"\n'
    host = golden_host("server")
    decided = plan(parse_vm(text, folder=Path("/vms")), host)
    assert len(decided.cells) == cell + 1
    assert read_claim(domain_xml(decided)) == claim(decided, driver="qemu")
    added = {0: 2 << 20, cell: 3 << 20 if cell == 0 else 1 << 20}
    own = 0 if decided.cells[0].is_huge else decided.cells[0].memory_kib
    assert dict(of_plan(decided).memory) == {
        decided.cells[at].node: kib + own for at, kib in added.items()
    }
    for way in WAYS.values():
        assert told(way(decided, host), host) == told(of_plan(decided), host)
