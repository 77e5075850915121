"""Laws of reading a domain: what kvmhooks wrote it reads back, and nothing is passed over."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import attrs
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmhooks.libvirt.edit.text import parse
from kvmhooks.libvirt.edit.toml import to_toml
from kvmhooks.libvirt.importing.importing import read_domain
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, plan
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import CpuFeature, CpuModel, Guest, MacAddress, Shutdown, Uuid
from kvmhooks.spec.structure import structure
from tests.laws.strategies import hosts, vm_documents
from tests.laws.test_plan import ANY, Made, plans

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=10)
tables: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.booleans() | st.integers(-(1 << 40), 1 << 40) | texts | st.lists(texts),
    lambda values: (
        st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), values)
        | st.lists(st.dictionaries(st.from_regex("[a-z]+", fullmatch=True), values), min_size=1)
    ),
).flatmap(lambda value: st.just({"value": value}))


@given(tables)
def test_toml_says_what_it_was_given(document: dict[str, Any]) -> None:
    """The standard library's reader reads back what was written."""
    assert tomllib.loads(to_toml(document)) == document


@given(plans(ANY))
def test_import_inverts_rendering(made: Made) -> None:
    """The spec of a rendered domain says what the plan decided and everything else of its spec.

    Nothing is left unexpressed, and the domain of the spec that was read is the same, byte for
    byte.
    """
    planned, host, claims = made
    shapes = {(len(cell.vcpus), cell.memory_kib) for cell in planned.cells}
    assume(len(shapes) == 1)  # the reader makes cells that are alike
    xml = domain_xml(planned)
    read = read_domain(xml)
    assert read.unexpressed == ()
    assert _bare(read.spec) == _bare(_settled(planned))
    assert domain_xml(plan(read.spec, host, claims)) == xml


def _bare(spec: VmSpec) -> VmSpec:
    """Without what no domain says: what kvm-launch alone does."""
    return attrs.evolve(spec, guest=Guest(), shutdown=Shutdown())


def _settled(planned: Plan) -> VmSpec:
    """The spec of a plan with all that it had left to kvmhooks said as it was decided."""
    spec = planned.spec
    shape = attrs.asdict(planned.topology)
    del shape["clusters"]
    return attrs.evolve(
        spec,
        uuid=Uuid(planned.uuid),
        machine=attrs.evolve(spec.machine, accel=planned.accel),
        cpu=attrs.evolve(
            spec.cpu,
            **shape,
            model=CpuModel(planned.cpu.model),
            features=tuple(map(CpuFeature, planned.cpu.features)),
            pmu=planned.hardware.interface.pmu,
            hint_dedicated=planned.hardware.interface.hint_dedicated,
        ),
        memory=attrs.evolve(
            spec.memory,
            cells=None if [cell.node for cell in planned.cells] == [None] else len(planned.cells),
        ),
        clock=attrs.evolve(spec.clock, offset=planned.hardware.clock.offset),
        disk=tuple(
            attrs.evolve(disk, aio=path.aio, iothread=iothread)
            for disk, path, iothread in zip(
                spec.disk, planned.hardware.disks, planned.disk_iothreads, strict=True
            )
        ),
        net=tuple(
            attrs.evolve(net, mac=MacAddress(mac))
            for net, mac in zip(spec.net, planned.macs, strict=True)
        ),
    )


@given(vm_documents(accel=("auto", "tcg")), hosts, st.data())
def test_nothing_is_passed_over(document: dict[str, Any], host: Any, data: st.DataObject) -> None:
    """An element or attribute that kvmhooks does not know is told, wherever it stands."""
    spec = structure({**document, "cpu": {"vcpus": 1}, "memory": {"size": "64MiB"},
                      "isolation": {}}, Path("/vms"))  # fmt: skip
    if host.kvm is None:
        spec = attrs.evolve(spec, machine=attrs.evolve(spec.machine, accel="tcg"))
    xml = domain_xml(plan(spec, host)).encode()
    source = parse(xml)
    decided = {
        "cputune",
        "numatune",
        "distances",
        "controller",
        "address",
        "boot",
        "iothreads",
        "iothreadids",
    }
    places = [
        element
        for element in source.root.walk()
        if not element.is_closed and not decided & set(element.path.replace("[", "/").split("/"))
        and "commandline" not in element.path
    ]  # fmt: skip
    place = data.draw(st.sampled_from(places))
    stranger = b"<stranger/>"
    told = read_domain(xml[: place.head_end] + stranger + xml[place.head_end :]).unexpressed
    assert [left.at.rpartition("/")[2] for left in told] == ["stranger"]
    attribute = b' stranger="1"'
    at = place.head_end - 1
    told = read_domain(xml[:at] + attribute + xml[at:]).unexpressed
    assert [left.at.rpartition("@")[2] for left in told] == ["stranger"]
