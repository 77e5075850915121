"""Every XML that is written is one that libvirt's own schema allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from lxml import etree

from kvmhooks.libvirt.xml import domain_xml
from tests.golden.cases import CASES, golden_plan

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not there: install libvirt-daemon-system")
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.mark.parametrize(("vm", "host"), [case for case in CASES if "+" not in case[1]])
def test_libvirts_schema_allows_the_xml(vm: str, host: str, schema: etree.RelaxNG) -> None:
    """The domain XML of every golden case is valid by libvirt's RelaxNG schema."""
    schema.assertValid(etree.fromstring(domain_xml(golden_plan(vm, host))))


def test_libvirts_schema_refuses_what_is_wrong(schema: etree.RelaxNG) -> None:
    """The schema is not so wide that anything passes: an unknown element is refused."""
    domain = etree.fromstring(domain_xml(golden_plan("tiny", "laptop")))
    etree.SubElement(domain, "vcpupins")
    assert not schema.validate(domain)
