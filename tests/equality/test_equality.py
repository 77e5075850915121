"""The two renderings of a plan are one machine: libvirt's own translation of our XML is our argv.

libvirt (``virConnectDomainXMLToNative``) is asked in a process of its own, without a daemon. Both
argument lists become dicts (``arguments``) and are compared field by field; what may differ is
written down in ``allowed``, and each rule there must be needed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from kvmhooks.errors import PlanError
from kvmhooks.host import Host
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import Plan, plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import VmSpec
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.model import MachineType
from kvmhooks.spec.security import Security
from kvmhooks.spec.structure import Unsuitable, structure
from tests.equality.allowed import ALLOWED, remaining
from tests.equality.arguments import differences, machine_of
from tests.equality.translator import Translator
from tests.equality.wide import wide_documents
from tests.golden.cases import CASES, golden_host, golden_plan, golden_vm
from tests.laws.strategies import hosts
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

    The system's QEMU and its newest machine; KVM only where it is; no disk that is the root folder.
    No secrets (libvirt's embedded driver has no identity to ask for one), no virtual function, USB
    device, TPM emulator or SEV that is not there, no passt; the sandbox, which qemu.conf decides
    for libvirt; no TSC frequency, which this CPU must be able to scale to.
    """
    accel = spec.machine.accel if HAS_KVM else "tcg"
    kind = spec.machine.type if spec.machine.type == "q35" else MachineType("pc-q35-7.2")
    machine = attrs.evolve(spec.machine, emulator=None, accel=accel, type=kind, sandbox=True)
    return attrs.evolve(
        spec,
        machine=machine,
        net=tuple(net for net in spec.net if net.type not in {"hostdev", "passt"}),
        disk=tuple(
            attrs.evolve(disk, encryption=None) for disk in spec.disk if disk.path != Path("/")
        ),
        host_usb=(),
        clock=attrs.evolve(spec.clock, tsc_frequency=None),
        security=Security(),
        tpm=None,
    )


def compare_golden_vms(libvirt: Translator) -> set[str]:
    """Compare every golden case that this libvirt and QEMU know of; the rules that were needed."""
    used: set[str] = set()
    for vm, host in CASES:
        place, _, target = host.partition("+")
        if not target:
            compare(libvirt, plan(fit(golden_vm(vm)), golden_host(place)), used)
    return used


def test_nothing_goes_unseen() -> None:
    """Each argument of ours that is taken away is a difference, but for what is behind a port."""
    for vm, host in CASES:
        argv = qemu_argv(golden_plan(vm, host))[1:]
        whole = machine_of(argv)
        starts = [at for at, word in enumerate(argv) if word.startswith("-")]
        for start, end in pairwise([*starts, len(argv)]):
            rest = machine_of([*argv[:start], *argv[end:]])
            found = remaining(differences(rest, whole), set())
            is_behind = argv[start] in {"-chardev", "-netdev", "-runas"}
            is_told = "throttle" in argv[end - 1] or argv[end - 1].startswith("dist,")
            assert found or is_behind or is_told, argv[start:end]


@st.composite
def drawn_plans(draw: st.DrawFn) -> Plan:
    """The plan of any VM on any small host."""
    host: Host = draw(hosts)
    try:
        spec = fit(structure(draw(wide_documents()), Path("/vms")))
    except Unsuitable:
        assume(condition=False)
        raise
    assume(not list(inconsistencies(spec)))
    try:
        return plan(spec, host)
    except PlanError:
        assume(condition=False)
        raise


def check(libvirt: Translator, examples: int) -> None:
    """Compare so many plans; each rule of what may differ is needed by some of them."""
    count = 0
    used = compare_golden_vms(libvirt)

    # What fails is told as it was drawn: each try asks a process, and shrinking takes minutes.
    @settings(
        max_examples=examples,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
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
