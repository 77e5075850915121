"""The CPU model that the guest sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, Kvm
from kvmhooks.host.system.system import Processor
from kvmhooks.machine.cpu_model import ALIKE, check_names, choose_cpu
from kvmhooks.machine.guest_cpu import GuestCpu
from kvmhooks.machine.qemu_features import FeatureUse
from kvmhooks.machine.target import ITS_OWN, Target, told_by
from kvmhooks.spec import parse_vm
from kvmhooks.spec.model import Cpu

NO_HOST_MODEL = "CPU model max: TCG has no host model"
TOPOEXT = "CPU feature topoext: without it an AMD guest sees no threads"


@pytest.mark.parametrize(
    ("keys", "vendor", "accel", "threads", "chosen", "why"),
    [
        ("", "intel", "kvm", 2, GuestCpu(model="host"), ()),
        ("", "amd", "kvm", 1, GuestCpu(model="host"), ()),
        ("", "amd", "kvm", 2, GuestCpu(model="host", features=("+topoext",)), (TOPOEXT,)),
        (
            'features = ["+invtsc"]',
            "amd",
            "kvm",
            2,
            GuestCpu(model="host", features=("+invtsc", "+topoext")),
            (TOPOEXT,),
        ),
        (
            'features = ["-topoext"]',
            "amd",
            "kvm",
            2,
            GuestCpu(model="host", features=("-topoext",)),
            (),
        ),
        ('model = "EPYC"', "amd", "kvm", 2, GuestCpu(model="EPYC"), ()),
        ("", None, "tcg", 1, GuestCpu(model="max"), (NO_HOST_MODEL,)),
        ("", None, "tcg", 2, GuestCpu(model="max", vendor="GenuineIntel"), (NO_HOST_MODEL,)),
        ('model = "max"', None, "tcg", 2, GuestCpu(model="max", vendor="GenuineIntel"), ()),
        ('model = "Nehalem"', None, "tcg", 2, GuestCpu(model="Nehalem"), ()),
    ],
)
def test_the_guest_sees_its_threads(
    keys: str, vendor: str | None, accel: str, threads: int, chosen: GuestCpu, why: tuple[str, ...]
) -> None:
    """On AMD ``topoext`` is added where threads are to be seen; the spec's own word stands."""
    text = f'name = "a"\n[cpu]\nvcpus = 2\n{keys}\n[memory]\nsize = "1GiB"\n'
    cpu = parse_vm(text, folder=Path("/")).cpu
    host = Host(kvm=Kvm(available=True, vendor=vendor))
    assert choose_cpu(cpu, host, accel=accel, threads=threads) == (chosen, why)


TOLD = told_by(
    ("EPYC-x86_64-cpu", "EPYC-v4-x86_64-cpu", "Nehalem-x86_64-cpu", "max-x86_64-cpu", "i6300esb"),
    {"max-x86_64-cpu": ("avx512f", "sse4.1", "invtsc", "vmx")},
)
KNOWN = Target(told=TOLD)
OLD_CPU = Host(processor=Processor(flags=("sse4_1", "fpu")))


def cpu_of(keys: str) -> Cpu:
    text = f'name = "a"\n[cpu]\nvcpus = 2\n{keys}\n[memory]\nsize = "1GiB"\n'
    return parse_vm(text, folder=Path("/")).cpu


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            'model = "NoSuchModel"',
            'cpu.model: found "NoSuchModel", expected a CPU model that this QEMU knows (-cpu help)',
        ),
        (
            'model = "EPYK"',
            (
                'cpu.model: found "EPYK", expected a CPU model that this QEMU knows (-cpu help), '
                "such as EPYC"
            ),
        ),
        (
            'features = ["+invtsc", "+avx512"]',
            (
                'cpu.features[1]: found "+avx512", expected a feature that this QEMU knows '
                "(-cpu help), such as avx512f"
            ),
        ),
        ('features = ["-nosuchflag"]', 'cpu.features[0]: found "-nosuchflag", expected a feature'),
    ],
)
def test_names_that_this_qemu_does_not_know_are_refused(keys: str, told: str) -> None:
    """Also one to be taken away: QEMU would end with an error for each."""
    with pytest.raises(PlanError) as caught:
        check_names(cpu_of(keys), Host(), FeatureUse(KNOWN), accel="kvm")
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "keys",
    [
        "",
        'model = "max"',
        'model = "EPYC"',
        'model = "EPYC-v4"',
        'features = ["-sse4-1"]',
        'features = ["+sse4_1"]',
        'features = ["+invtsc"]',
    ],
)
def test_names_that_it_knows_are_taken(keys: str) -> None:
    """In any of their spellings."""
    features = FeatureUse(KNOWN)
    check_names(cpu_of(keys), Host(), features, accel="kvm")
    assert not features.left_out


@pytest.mark.parametrize("target", [Target(), ITS_OWN, Target(told=frozenset({"i6300esb"}))])
def test_what_is_not_known_is_not_judged(target: Target) -> None:
    """Of a QEMU that was not asked, or runs the VM already, no name is wrong."""
    features = FeatureUse(target)
    check_names(cpu_of('model = "New"\nfeatures = ["+new"]'), Host(), features, accel="kvm")
    assert not features.left_out


@pytest.mark.parametrize(
    ("keys", "accel", "host", "told"),
    [
        (
            'features = ["+invtsc", "+avx512f"]',
            "kvm",
            OLD_CPU,
            ["cpu.features[1] is left out: the CPU of this host has no avx512f (/proc/cpuinfo)"],
        ),
        ('features = ["+sse4-1"]', "kvm", OLD_CPU, []),
        ('features = ["-avx512f"]', "kvm", OLD_CPU, []),
        ('features = ["+avx512f"]', "tcg", OLD_CPU, []),
        ('features = ["+avx512f"]', "kvm", Host(), []),
        ('features = ["+x2apic"]', "kvm", OLD_CPU, []),
    ],
)
def test_features_that_the_host_lacks_are_told(
    keys: str, accel: str, host: Host, told: list[str]
) -> None:
    """Under KVM QEMU leaves them out with a word on standard error that nobody reads."""
    features = FeatureUse(Target())
    check_names(cpu_of(keys), host, features, accel=accel)
    assert list(features.left_out) == told


def test_the_names_that_are_compared_have_no_signs() -> None:
    """They are compared without hyphens, which QEMU and the kernel set differently."""
    assert {name for name in ALIKE if not name.isalnum()} == set()
