"""The CPU model that the guest sees: one that shows it its threads, and that there is.

QEMU ends with an error for a name that it does not know, and starts the guest without a feature
that the host lacks (``x86_cpu_filter_features()``, target/i386/cpu.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.machine.guest_cpu import WHOLE, GuestCpu
from kvmhooks.machine.qemu_features import FeatureUse
from kvmhooks.spec.model import Cpu, VmSpec

MODEL: Final = "-x86_64-cpu"
"""The end of the name of a model's type (``X86_CPU_TYPE_SUFFIX``, target/i386/cpu.h)."""

OPTIONS: Final = "max-x86_64-cpu"
"""The type whose properties are all features that QEMU knows."""

_NAMES: Final = (
    "3dnow 3dnowext 3dnowprefetch abm adx aes amxbf16 amxint8 amxtile avx avxvnni avx2 "
    "avx512bf16 avx512bitalg avx512fp16 avx512vbmi2 avx512vnni avx512vp2intersect "
    "avx512vpopcntdq avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vl bmi1 "
    "bmi2 clflushopt clwb clzero erms f16c fma fma4 fsgsbase fsrm gfni hle invpcid misalignsse "
    "mmxext movbe movdir64b movdiri osvw pcid pclmulqdq pdpe1gb perfctrcore pku popcnt rdrand "
    "rdseed rdtscp rtm serialize shani smap smep sse41 sse42 sse4a ssse3 svm tbm vaes vmx "
    "vpclmulqdq waitpkg wbnoinvd xop xsave xsavec xsaveerptr xsaveopt xsaves"
)

ALIKE: Final = frozenset(_NAMES.split())
"""Features that a guest has only where the host's CPU has them, and that QEMU and the kernel (x86's
cpufeatures.h) call alike, but for hyphens. KVM emulates others, such as x2apic and umip."""


def asked_of_host(spec: VmSpec) -> Iterator[str]:
    """Yield the keys with which a VM asks for what not every processor and kernel has."""
    if spec.cpu.model not in WHOLE:
        yield "cpu.model"
    if spec.cpu.features:
        yield "cpu.features"
    if spec.security.type != "none":
        yield "security.type"


def choose_cpu(
    cpu: Cpu, host: Host, *, accel: str, threads: int
) -> tuple[GuestCpu, tuple[str, ...]]:
    """Return the CPU model of a guest with so many ``threads`` in a core, and why.

    An AMD CPU tells of its threads in leaf 0x8000001E, which it has with ``topoext`` only; Intel's
    do in leaf 0xB (arch/x86/kernel/cpu/topology.c and amd.c). So ``-cpu host`` on an AMD host needs
    the feature added, as QEMU leaves it out (target/i386/cpu.c). TCG has no host CPU to pass
    through; its ``max`` calls itself AMD and offers no ``topoext``, so it is told to be Intel's.
    """
    # The counters are no feature of CPUID, and libvirt has an element of its own for them.
    features = tuple(feature for feature in cpu.features if feature[1:] != "pmu")
    if cpu.model not in WHOLE:
        return GuestCpu(model=cpu.model, features=features), ()
    if accel == "tcg":
        vendor = "GenuineIntel" if threads > 1 else None
        emulated = GuestCpu(model="max", vendor=vendor, features=features)
        return emulated, ("CPU model max: TCG has no host model",) if cpu.model == "host" else ()
    is_amd = host.kvm is not None and host.kvm.vendor == "amd"
    is_said = any(feature[1:] == "topoext" for feature in cpu.features)
    if threads == 1 or not is_amd or is_said:
        return GuestCpu(model=cpu.model, features=features), ()
    with_threads = GuestCpu(model=cpu.model, features=(*features, "+topoext"))
    return with_threads, ("CPU feature topoext: without it an AMD guest sees no threads",)


def check_names(cpu: Cpu, host: Host, features: FeatureUse, *, accel: str) -> None:
    """Refuse a model or a feature that this QEMU does not know; tell of one that the host lacks.

    What is not known of the target or the host is not looked at. Raises ``PlanError``.
    """
    told = features.target.told
    if told is not None and not features.target.runs_it:
        _check_model(cpu, told)
        _check_features(cpu, told)
    flags = host.processor.flags if host.processor is not None else None
    if accel != "kvm" or flags is None or features.target.runs_it:
        return
    has = {_letters(flag) for flag in flags}
    for index, feature in enumerate(cpu.features):
        name = _letters(feature[1:])
        if feature[0] == "+" and name in ALIKE and name not in has:
            why = f"the CPU of this host has no {feature[1:]} (/proc/cpuinfo)"
            features.leave_out(f"cpu.features[{index}]", why)


def _check_model(cpu: Cpu, told: frozenset[str]) -> None:
    models = {word.removesuffix(MODEL) for word in told if word.endswith(MODEL)}
    if models and cpu.model not in {*models, "host", "max"}:
        raise PlanError("cpu.model", f'"{cpu.model}"', _expected(cpu.model, models, "a CPU model"))


def _check_features(cpu: Cpu, told: frozenset[str]) -> None:
    known = {word.partition(".")[2] for word in told if word.startswith(f"{OPTIONS}.")}
    spelled = {_spelled(name) for name in known}
    for index, feature in enumerate(cpu.features):
        if known and _spelled(feature[1:]) not in spelled:
            expected = _expected(feature[1:], known, "a feature")
            raise PlanError(f"cpu.features[{index}]", f'"{feature}"', expected)


def _expected(name: str, known: set[str], what: str) -> str:
    """Return what a name could have been: the nearest ones that QEMU knows."""
    import difflib  # noqa: PLC0415 -- only for a message

    near = difflib.get_close_matches(name, sorted(known), n=3)
    nearest = f", such as {', '.join(near)}" if near else ""
    return f"{what} that this QEMU knows (-cpu help){nearest}"


def _spelled(name: str) -> str:
    """Return a name with hyphens, which QEMU takes for other signs (``feat2prop()``)."""
    return name.replace("_", "-").replace(".", "-")


def _letters(name: str) -> str:
    return _spelled(name).replace("-", "")
