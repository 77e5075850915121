"""The CPU model that the guest sees."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, Kvm
from kvmhooks.host.system.system import Processor
from kvmhooks.libvirt.capabilities import told_by as libvirt_tells
from kvmhooks.machine.cpu_model import ALIKE, check_names, choose_cpu
from kvmhooks.machine.guest_cpu import GuestCpu
from kvmhooks.machine.qemu_features import FeatureUse
from kvmhooks.machine.target import ITS_OWN, CpuAnswers, Target, told_by
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


ANSWERS = CpuAnswers(
    lacking={
        "EPYC": ("sha-ni", "clwb", "pcid"),
        "Nehalem": tuple("abcdefghijklmn"),
        "Conroe": ("monitor",),
    },
    absent=frozenset({"sha-ni", "sse4.2", "avx512f", "monitor"}),
)
ASKED = Target(answers={"kvm": ANSWERS})
UNDER = "under KVM here, by QEMU's own answer"


@pytest.mark.parametrize(
    ("keys", "accel", "told"),
    [
        (
            'model = "EPYC"',
            "kvm",
            [
                "cpu.model: EPYC is left without sha-ni, clwb, pcid: a guest has none of them "
                + UNDER
            ],
        ),
        (
            'model = "EPYC"\nfeatures = ["-sha_ni", "-clwb"]',
            "kvm",
            [f"cpu.model: EPYC is left without pcid: a guest has none of them {UNDER}"],
        ),
        ('model = "EPYC"\nfeatures = ["-sha-ni", "-clwb", "-pcid"]', "kvm", []),
        (
            'model = "Nehalem"',
            "kvm",
            [
                (
                    "cpu.model: Nehalem is left without a, b, c, d, e, f, g, h, i, j, k, l and "
                    f"2 more: a guest has none of them {UNDER}"
                )
            ],
        ),
        ('model = "qemu64"', "kvm", []),
        ("", "kvm", []),
        ('model = "EPYC"', "tcg", []),
        (
            'features = ["+invtsc", "+sse4_2", "-avx512f", "+sha-ni"]',
            "kvm",
            [
                f"cpu.features[1] is left out: a guest has no sse4_2 {UNDER}",
                f"cpu.features[3] is left out: a guest has no sha-ni {UNDER}",
            ],
        ),
        ('features = ["+avx512f"]', "tcg", []),
        (
            'features = ["+monitor"]',
            "kvm",
            [f"cpu.features[0] is left out: a guest has no monitor {UNDER}"],
        ),
        ('features = ["+monitor"]\ncpu_pm = true', "kvm", []),
        ('model = "Conroe"\ncpu_pm = true', "kvm", []),
    ],
)
def test_qemus_own_answers_are_told(keys: str, accel: str, told: list[str]) -> None:
    """Of a model, and of the features that are asked for, each that a guest would not get; QEMU
    knows more than the host's flags, which say nothing of what KVM lacks.
    """
    features = FeatureUse(ASKED)
    host = Host(processor=Processor(flags=("sha_ni", "sse4_2")))
    check_names(cpu_of(keys), host, features, accel=accel)
    assert list(features.left_out) == told
    running = FeatureUse(attrs.evolve(ASKED, runs_it=True))
    check_names(cpu_of(keys), host, running, accel=accel)
    assert not running.left_out


LISTED = """\
<domainCapabilities><cpu>
  <mode name='host-model' supported='yes'><model fallback='forbid'>Nehalem</model></mode>
  <mode name='custom' supported='yes'>
    <model usable='yes' vendor='unknown'>qemu64</model>
    <model usable='no' vendor='AMD'>EPYC</model>
    <model usable='unknown' vendor='AMD'>Opteron_G1</model>
  </mode></cpu></domainCapabilities>"""


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("qemu64", []),
        ("Opteron_G1", []),
        ("host", []),
        (
            "EPYC",
            [
                (
                    "cpu.model: EPYC is left without some of its features: this host has not all "
                    "of it, by libvirt's domain capabilities"
                )
            ],
        ),
    ],
)
def test_what_libvirt_says_of_models_is_told(model: str, told: list[str]) -> None:
    """It counts where QEMU was not asked under KVM, and not without libvirt."""
    target = Target(domain=libvirt_tells(LISTED))
    features = FeatureUse(target)
    check_names(cpu_of(f'model = "{model}"'), Host(), features, accel="kvm")
    assert list(features.left_out) == told
    alone = FeatureUse(attrs.evolve(target, libvirt=None))
    check_names(cpu_of('model = "EPYC"'), Host(), alone, accel="kvm")
    assert not alone.left_out
    finer = FeatureUse(attrs.evolve(target, answers={"kvm": ANSWERS}))
    check_names(cpu_of('model = "EPYC"'), Host(), finer, accel="kvm")
    assert [sentence for sentence in finer.left_out if "sha-ni, clwb, pcid" in sentence]
    assert len(finer.left_out) == 1


def test_a_model_that_libvirt_does_not_list_is_refused() -> None:
    """It refuses it when the VM starts; QEMU alone may know it."""
    target = Target(domain=libvirt_tells(LISTED))
    with pytest.raises(PlanError) as caught:
        check_names(cpu_of('model = "EPYC-New"'), Host(), FeatureUse(target), accel="kvm")
    assert str(caught.value) == (
        'cpu.model: found "EPYC-New", expected a CPU model that this libvirt lists (virsh '
        "domcapabilities), such as EPYC"
    )
    alone = attrs.evolve(target, libvirt=None)
    check_names(cpu_of('model = "EPYC-New"'), Host(), FeatureUse(alone), accel="kvm")


def test_the_names_that_are_compared_have_no_signs() -> None:
    """They are compared without hyphens, which QEMU and the kernel set differently."""
    assert {name for name in ALIKE if not name.isalnum()} == set()
