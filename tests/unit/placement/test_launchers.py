"""Keys that one launcher alone carries out: refused, or told of, beside the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import attrs
import pytest

from kvmhooks.placement import plan
from kvmhooks.placement.launchers import ALONE, KVM_LAUNCH, LIBVIRT, foreign, left_out
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.spec.device import hints_of
from tests.golden.cases import golden_host

VM = 'name = "a"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'

SAID = [
    # what a file says; the launcher that does not carry it out; all that it is told
    (
        "run.hang_timeout = 60",
        LIBVIRT,
        ("run.hang_timeout: found 60, expected nothing, or kvm-launch: libvirt waits for a QEMU "
        "that does not answer"),
    ),
    (
        'run.restart = "always"\nrun.restart_delay = 5\nrun.ready = "running"',
        LIBVIRT,
        ("run.restart: found 'always', expected nothing, or kvm-launch: libvirt starts no VM "
        "again\n"
        "run.restart_delay: found 5, expected nothing, or kvm-launch: libvirt starts no VM again"),
    ),
    (
        'guest.agent = true\nrun.ready = "agent"',
        LIBVIRT,
        "run.ready: found 'agent', expected nothing, or kvm-launch: libvirt tells nobody",
    ),
    (
        'run.writable = ["/b"]',
        LIBVIRT,
        ("run.writable: found an array, expected nothing, or kvm-launch: libvirt's profile of "
        "AppArmor or SELinux says what QEMU writes"),
    ),
    (
        "machine.sandbox = false",
        LIBVIRT,
        ("machine.sandbox: found false, expected nothing, or kvm-launch: seccomp_sandbox of "
        "qemu.conf says it"),
    ),
    (
        'memory.backend = "file"\nmemory.path = "/dev/shm"',
        LIBVIRT,
        ("memory.path: found '/dev/shm', expected nothing, or kvm-launch: memory_backing_dir of "
        "qemu.conf says it"),
    ),
    (
        'tpm.model = "crb"\ntpm.state = "/t"',
        LIBVIRT,
        ("tpm.state: found '/t', expected nothing, or kvm-launch: libvirt keeps the TPM's state "
        "itself"),
    ),
    (
        '[[helper]]\ncommand = ["/bin/a"]',
        LIBVIRT,
        "helper: found an array, expected nothing, or kvm-launch: libvirt starts no such program",
    ),
    (
        "isolation.cache_ways = 4",
        KVM_LAUNCH,
        ("isolation.cache_ways: found 4, expected nothing, or libvirt: kvm-launch makes no group "
        "of resctrl"),
    ),
    (
        "isolation.memory_bandwidth = 50",
        KVM_LAUNCH,
        ("isolation.memory_bandwidth: found 50, expected nothing, or libvirt: kvm-launch makes no "
        "group of resctrl"),
    ),
    (
        ('[[net]]\ntype = "hostdev"\naddress = "0000:03:02.1"\nvlan = 7\n'
        'mac = "52:54:00:00:00:01"'),
        KVM_LAUNCH,
        ("net[0].vlan: found 7, expected nothing, or libvirt: [[pci]] with sriov = { …, vlan = … } "
        "does it\n"
        "net[0].mac: found '52:54:00:00:00:01', expected nothing, or libvirt: [[pci]] with sriov = "
        "{ …, mac = … } does it"),
    ),
    ("", LIBVIRT, ""),
    ("", KVM_LAUNCH, ""),
]  # fmt: skip


def spec_of(text: str) -> VmSpec:
    return parse_vm(VM + text, folder=Path("/vms"))


@pytest.mark.parametrize(("text", "launcher", "told"), SAID)
def test_what_a_launcher_does_not_do_is_told(text: str, launcher: str, told: str) -> None:
    """Each key with its value, and the launcher or another key that does it."""
    assert "\n".join(map(str, foreign(spec_of(text), launcher))) == told


@pytest.mark.parametrize(("text", "launcher", "told"), SAID)
def test_the_other_launcher_has_nothing_against_it(text: str, launcher: str, told: str) -> None:
    """It carries out what the first does not."""
    other = KVM_LAUNCH if launcher == LIBVIRT else LIBVIRT
    assert list(foreign(spec_of(text), other)) == [], told


def test_every_such_key_is_in_the_table() -> None:
    """Each row is tried above, and names a key that there is."""
    tried = "\n".join(told for _, _, told in SAID).replace("[0]", "[]")
    assert [key for key in ALONE if f"{key}: found" not in tried] == []
    for key in ALONE:
        made: Any = VmSpec
        for name in key.split("."):
            hint = hints_of(made)[name.removesuffix("[]")]
            assert hint is not None
            made = next((kind for kind in (hint, *get_args(hint)) if attrs.has(kind)), None)


def test_what_is_only_written_down_is_told_of() -> None:
    """A sentence for each, as of a feature that the target lacks."""
    assert list(left_out(spec_of("machine.sandbox = false"), LIBVIRT)) == [
        "machine.sandbox is left out: seccomp_sandbox of qemu.conf says it"
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tuning.iothreads.quota = 5000", "tuning.iothreads is left out: the VM has no iothreads"),
        (
            "isolation.memory_bandwidth = 50",
            "isolation.memory_bandwidth is left out: no L3 cache is its dedicated vCPUs' alone",
        ),
        ('tuning.iothreads.quota = 5000\n[[disk]]\npath = "d"', None),
    ],
)
def test_what_a_place_leaves_without_effect_is_told(text: str, told: str | None) -> None:
    """Threads that there are not, and caches that no vCPU of the VM has."""
    warnings = plan(spec_of(text), golden_host("laptop")).warnings
    assert [each for each in warnings if "is left out" in each] == ([] if told is None else [told])
