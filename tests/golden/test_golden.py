"""Whole renderings, kept in files: what changes shows in the diff."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import attrs
import pytest

from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.guest_cpu import GuestCpu
from kvmhooks.machine.hardware import Hardware
from kvmhooks.machine.topology import Topology
from kvmhooks.placement import Plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.show.printed import printed
from kvmhooks.show.shell import command_line
from kvmhooks.spec import VmSpec
from kvmhooks.spec.device import device_class, hints_of
from kvmhooks.spec.present import DEVICES
from kvmhooks.spec.structure import is_key
from tests.golden.cases import CASES, HERE, HOSTS, TARGETS, golden_plan, golden_vm

VMS = sorted(path.stem for path in (HERE / "vms").iterdir())
TYPES = {kind.__name__: kind for kind in (GuestCpu, Hardware, Topology, VmSpec)}
"""The types of a plan's fields, which its module imports for the type checker alone."""

EXPECTED = HERE / "expected"
FORMS: dict[str, Callable[[Plan], str]] = {
    "xml": domain_xml,
    "argv": lambda plan: command_line(qemu_argv(plan)),
    "plan.json": lambda plan: printed(plan, "plan", as_json=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("vm", "host"), CASES)
def test_the_rendering_is_the_one_on_file(
    vm: str, host: str, form: str, request: pytest.FixtureRequest
) -> None:
    """For each VM and host, the domain XML, QEMU's arguments and the plan are those on file."""
    if form not in _forms(vm, host):
        pytest.skip("libvirt has no such machine")
    file = EXPECTED / f"{vm}@{host}.{form}"
    text = FORMS[form](golden_plan(vm, host))
    if request.config.getoption("--regen"):
        file.write_text(text)
    assert text == file.read_text()


def test_there_is_no_file_without_its_case() -> None:
    """Every golden file and every golden VM and host belongs to a case."""
    names = {f"{vm}@{host}.{form}" for vm, host in CASES for form in _forms(vm, host)}
    assert {path.name for path in EXPECTED.iterdir()} == names
    assert sorted({vm for vm, _ in CASES}) == VMS
    assert {host.partition("+")[0] for _, host in CASES} == set(HOSTS)
    assert {host.partition("+")[2] for _, host in CASES} == set(TARGETS)


def test_every_field_of_a_spec_is_exercised() -> None:
    """Each key that ``vm.toml`` knows has another value than its default in some golden VM."""
    exercised = {
        f"{type(table).__name__}.{field.name}"
        for table in _golden_tables()
        for field in _keys(type(table))
        if getattr(table, field.name) != field.default
    }
    known = {f"{made.__name__}.{key.name}" for made in _classes(VmSpec) for key in _keys(made)}
    assert known == exercised


def test_every_choice_of_a_spec_is_exercised() -> None:
    """Each value of each key that takes one of a few is in some golden VM."""
    seen = {
        (type(table).__name__, field.name, getattr(table, field.name))
        for table in _golden_tables()
        for field in _keys(type(table))
        if get_origin(hints_of(type(table))[field.name]) is Literal
    }
    assert seen == {
        (made.__name__, key.name, choice)
        for made in _classes(VmSpec)
        for key in _keys(made)
        for hint in [hints_of(made)[key.name]]
        if get_origin(hint) is Literal
        for choice in get_args(hint)
    }


def test_what_is_rendered_is_the_same_machine_in_both() -> None:
    """The XML and the arguments of a case plug the same devices into the same PCI ports."""
    for vm, host in CASES:
        if "xml" in _forms(vm, host):
            in_argv, in_xml = same_places(golden_plan(vm, host))
            assert in_argv == in_xml, (vm, host)


def same_places(plan: Plan) -> tuple[list[str], list[str]]:
    """The bus and address of every PCI device of a plan: in QEMU's arguments, and in the XML."""
    from lxml import etree

    domain = etree.fromstring(domain_xml(plan))
    argv = qemu_argv(plan)
    devices = [json.loads(value) for option, value in pairwise(argv) if option == "-device"]
    in_argv = sorted(
        f"{device['bus'].removeprefix('pci.').replace('pcie.0', '0')} {device['addr']}"
        for device in devices
        if device.get("bus", "").startswith("pci")
        and device["driver"] not in {"pcie-root-port", "pxb-pcie"}
    )
    in_xml = sorted(
        f"{int(address.get('bus', ''), 16)} {_in_qemus_words(address)}"
        for device in domain.iterfind("devices/*")
        if (device.tag, device.get("type")) != ("controller", "pci")
        for address in device.iterfind("address[@type='pci']")
    )
    return in_argv, in_xml


def _forms(vm: str, host: str) -> list[str]:
    """Return the forms that a case is rendered in: no libvirt, no domain."""
    has_libvirt = golden_plan(vm, host).hardware.target.libvirt is not None
    return [form for form in FORMS if form != "xml" or has_libvirt]


def _in_qemus_words(address: Any) -> str:
    function = int(address.get("function"), 16)
    return f"{int(address.get('slot'), 16):#x}" + (f".{function:#x}" if function else "")


def _golden_tables() -> Iterator[Any]:
    for name in VMS:
        yield from _tables(golden_vm(name))


def _tables(table: Any) -> Iterator[Any]:
    yield table
    for key in _keys(type(table)):
        value = getattr(table, key.name)
        if value is None and type(table) is VmSpec and key.name in DEVICES:
            value = device_class(key.name)()  # the table that is not there has its defaults
        for item in value if isinstance(value, tuple) else (value,):
            if attrs.has(type(item)):
                yield from _tables(item)


def _classes(made: Any) -> Iterator[Any]:
    """A class and all that its fields are made of, however deep."""
    yield made
    hints = hints_of(made) if made is VmSpec else get_type_hints(made, localns=TYPES)
    for key in _keys(made):
        for inner in _made_of(hints[key.name]):
            yield from _classes(inner)


def _made_of(hint: Any) -> Iterator[Any]:
    if isinstance(hint, type) and attrs.has(hint):
        yield hint
    for inner in get_args(hint):
        yield from _made_of(inner)


def _keys(made: Any) -> list[attrs.Attribute[Any]]:
    return [field for field in attrs.fields(made) if is_key(field)]
