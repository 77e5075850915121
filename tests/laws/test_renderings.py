"""Laws of the renderings: for any VM, both are well-formed and describe the same devices."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmhooks.errors import PlanError
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, Target, plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.structure import structure
from tests.golden.test_golden import same_places
from tests.laws.rich import rich_documents
from tests.laws.strategies import hosts

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
TARGETS = (Target(), Target(qemu=(10, 1), libvirt=(11, 10), io_uring=True, vhost_net=True))


@st.composite
def rich_plans(draw: st.DrawFn, target: Target = TARGETS[0]) -> Plan:
    """The plan of a VM with many devices."""
    spec = structure(draw(rich_documents()), Path("/vms"))
    assert list(inconsistencies(spec)) == []
    try:
        return plan(spec, draw(hosts), target=target)
    except PlanError:
        assume(condition=False)  # only what fits is looked at
        raise


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not there: install libvirt-daemon-system")
    return etree.RelaxNG(etree.parse(SCHEMA))


@given(rich_plans())
@settings(max_examples=60)
def test_libvirts_schema_allows_the_xml(schema: etree.RelaxNG, made: Plan) -> None:
    """The schema allows whatever the oldest target has."""
    schema.assertValid(etree.fromstring(domain_xml(made)))


@pytest.mark.parametrize("target", TARGETS, ids=["old", "new"])
@given(data=st.data())
@settings(max_examples=60)
def test_both_plug_in_the_same_devices(target: Target, data: st.DataObject) -> None:
    """Every device stands at the same address in both, and nothing stands where another does."""
    made = data.draw(rich_plans(target))
    in_argv, in_xml = same_places(made)
    assert in_argv == in_xml
    assert len(set(in_argv)) == len(in_argv)


@given(rich_plans())
@settings(max_examples=60)
def test_every_id_is_given_once(made: Plan) -> None:
    """Each object, node, backend and device has an id of its own, and what is named is there."""
    owners: dict[str, list[dict[str, Any]]] = {}
    for option, value in pairwise(qemu_argv(made)):
        if option in {"-object", "-device", "-blockdev"} and value.startswith("{"):
            owners.setdefault(option[1:], []).append(json.loads(value))
    for option, key in (("object", "id"), ("device", "id"), ("blockdev", "node-name")):
        ids = [each[key] for each in owners.get(option, []) if key in each]
        assert len(set(ids)) == len(ids), option
    objects = {each["id"] for each in owners.get("object", [])}
    nodes = {each["node-name"] for each in owners.get("blockdev", [])}
    for device in owners.get("device", []):
        assert device.get("drive") is None or device["drive"] in nodes
        for key in ("iothread", "memdev", "rng"):
            assert device.get(key) is None or device[key] in objects
