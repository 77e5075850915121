"""The two renderings of a plan are one machine: libvirt's own translation of our XML is our argv.

libvirt (``virConnectDomainXMLToNative``) is asked in a process of its own, without a daemon. Both
argument lists become dicts (``arguments``) and are compared field by field; what may differ is
written down in ``allowed``, and each rule there must be needed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.host import Host
from kvmhooks.placement import Plan, plan
from kvmhooks.render import domain_xml, qemu_argv
from kvmhooks.spec import VmSpec
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.model import CpuModel, InterfaceName, MachineType
from kvmhooks.spec.structure import structure
from tests.equality.allowed import ALLOWED, remaining
from tests.equality.arguments import differences, machine_of
from tests.equality.translator import Translator
from tests.golden.cases import CASES, golden_host, golden_plan, golden_vm
from tests.laws.strategies import hosts, vm_documents
from tests.schemas import flaws

HAS_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
"""libvirt translates a KVM domain only where it could run one; else all are TCG's."""


@pytest.fixture(scope="module")
def libvirt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translator]:
    """libvirt's translation."""
    if os.geteuid() != 0:
        pytest.skip("libvirt's translator needs a mount namespace: only root can make one")
    if shutil.which("libvirtd") is None or not Path("/usr/bin/qemu-system-x86_64").exists():
        pytest.skip("no libvirtd or QEMU: apt install libvirt-daemon-system qemu-system-x86")
    with Translator(tmp_path_factory.mktemp("translator")) as made:
        yield made


def compare(libvirt: Translator, planned: Plan, used: set[str]) -> None:
    """Fail with every difference between the two renderings that no rule allows."""
    xml = domain_xml(planned)
    assert flaws(xml) == []
    theirs = machine_of(libvirt.arguments(xml))
    ours = machine_of(qemu_argv(planned)[1:])
    assert remaining(differences(ours, theirs), used) == []


def fit(spec: VmSpec) -> VmSpec:
    """The spec with what this libvirt can translate.

    The system's QEMU and its newest machine; KVM only where it is; models and features that libvirt
    9.0 has names for (none of a model's versions, and ``pmu`` is an element of its own), each
    feature once; interfaces and files whose names its schema has (no ``+``, not the root).
    """
    accel = spec.machine.accel if HAS_KVM else "tcg"
    kind = spec.machine.type if spec.machine.type == "q35" else MachineType("pc-q35-7.2")
    machine = attrs.evolve(spec.machine, emulator=None, accel=accel, type=kind)
    once = {feature[1:]: feature for feature in spec.cpu.features if feature[1:] != "pmu"}
    model = CpuModel(re.sub(r"-v\d+$", "", spec.cpu.model))
    cpu = attrs.evolve(spec.cpu, model=model, features=tuple(once.values()))
    nets = tuple(
        attrs.evolve(net, device=net.device and InterfaceName(net.device.replace("+", "-")))
        for net in spec.net
    )
    disks = tuple(disk for disk in spec.disk if disk.path != Path("/"))
    return attrs.evolve(spec, machine=machine, cpu=cpu, net=nets, disk=disks)


def test_golden_vms_are_one_machine(libvirt: Translator) -> None:
    """Every golden case."""
    for vm, host in CASES:
        compare(libvirt, plan(fit(golden_vm(vm)), golden_host(host)), set())


def test_nothing_goes_unseen() -> None:
    """Each argument of ours that is taken away is a difference, but for what is behind a port."""
    for vm, host in CASES:
        argv = qemu_argv(golden_plan(vm, host))[1:]
        whole = machine_of(argv)
        starts = [at for at, word in enumerate(argv) if word.startswith("-")]
        for start, end in pairwise([*starts, len(argv)]):
            rest = machine_of([*argv[:start], *argv[end:]])
            found = remaining(differences(rest, whole), set())
            assert found or argv[start] in {"-chardev", "-netdev"}, argv[start:end]


@st.composite
def drawn_plans(draw: st.DrawFn) -> Plan:
    """The plan of any VM on any small host."""
    document: dict[str, Any] = draw(vm_documents(accel=("auto", "tcg")))
    host: Host = draw(hosts)
    spec = fit(structure(document, Path("/vms")))
    assume(not list(inconsistencies(spec)))
    try:
        return plan(spec, host)
    except PlanError:
        assume(condition=False)
        raise


def check(libvirt: Translator, examples: int) -> None:
    """Compare so many plans; each rule of what may differ is needed by some of them."""
    count = 0
    used: set[str] = set()

    # What fails is told as it was drawn: each try asks a process, and shrinking takes minutes.
    @settings(max_examples=examples, phases=[Phase.explicit, Phase.generate])
    @given(drawn_plans())
    def equal(planned: Plan) -> None:
        nonlocal count
        compare(libvirt, planned, used)
        count += 1

    equal()
    print(f"{count} specs: libvirt's arguments and ours are one machine")
    assert count >= examples
    assert {rule.place for rule in ALLOWED} == used


def test_any_vm_is_one_machine(libvirt: Translator) -> None:
    """300 VMs, of every shape that vm.toml can say."""
    check(libvirt, 300)


@pytest.mark.slow
def test_thousands_of_vms_are_one_machine(libvirt: Translator) -> None:
    """10,000 VMs."""
    check(libvirt, 10_000)
