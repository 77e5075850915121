"""The CPU model that the guest sees: one that shows it its threads, and that there is.

QEMU ends with an error for a name that it does not know, and starts the guest without a feature
that the host lacks, also one of a named model (``x86_cpu_filter_features()``, target/i386/cpu.c).
So does libvirt with ``check='none'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.machine.guest_cpu import WHOLE, GuestCpu
from kvmhooks.machine.qemu_features import FeatureUse
from kvmhooks.machine.target import Target
from kvmhooks.spec.model import Cpu, VmSpec

MODEL: Final = "-x86_64-cpu"
"""The end of the name of a model's type (``X86_CPU_TYPE_SUFFIX``, target/i386/cpu.h)."""

MODELS: Final = "cpu/custom"
UNUSABLE: Final = "cpu/unusable"
"""The words of ``Target.domain`` for models that libvirt lists, and those that it says this host
lacks parts of."""

SHOWN_FEATURES: Final = 12

_WITH_CPU_PM: Final = frozenset({"monitor", "waitpkg"})
"""Features that KVM gives to a guest that puts CPUs to sleep itself, and to no other
(``kvm_arch_get_supported_cpuid()`` with ``enable_cpu_pm``, target/i386/kvm/kvm.c): QEMU is asked
without."""

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
    """Refuse a model or a feature that this QEMU, or libvirt, does not know; tell of what the host
    lacks of them.

    Nothing is checked against a target or a host that is not known. Raises ``PlanError``.
    """
    target = features.target
    if target.runs_it:
        return
    if target.told is not None:
        _check_model(cpu, target.told)
        _check_features(cpu, target.told)
    _check_libvirts_models(cpu, target)
    lacking = tuple(_lacking_of_model(cpu, target, accel))
    if lacking:
        taken = {_spelled(feature[1:]) for feature in cpu.features if feature[0] == "-"}
        taken |= _WITH_CPU_PM if cpu.cpu_pm else frozenset()
        names = [name for name in lacking if _spelled(name) not in taken]
        if names:
            where = f"a guest has none of them under {accel.upper()} here, by QEMU's own answer"
            features.tell(f"cpu.model: {cpu.model} is left without {_listed(names)}: {where}")
    elif f"{UNUSABLE}={cpu.model}" in _words(target):
        why = "this host has not all of it, by libvirt's domain capabilities"
        features.tell(f"cpu.model: {cpu.model} is left without some of its features: {why}")
    has = _has(host, target, accel)
    for index, feature in enumerate(cpu.features):
        is_given = cpu.cpu_pm and feature[1:] in _WITH_CPU_PM
        why = has(feature[1:]) if feature[0] == "+" and not is_given else ""
        if why:
            features.leave_out(f"cpu.features[{index}]", why)


def _lacking_of_model(cpu: Cpu, target: Target, accel: str) -> tuple[str, ...]:
    """Return the features of a named model that QEMU says no guest can have here."""
    answers = target.answers.get(accel)
    if answers is None or cpu.model in WHOLE:
        return ()
    return answers.lacking.get(cpu.model, ())


def _has(host: Host, target: Target, accel: str) -> Callable[[str], str]:
    """Return a function that says why a guest cannot have a feature; empty where it can.

    QEMU's answers decide. Where it was not asked, the host's CPU does, under KVM.
    """
    answers = target.answers.get(accel)
    if answers is not None and answers.absent:
        absent = set(map(_spelled, answers.absent))
        why = f"a guest has no {{}} under {accel.upper()} here, by QEMU's own answer"
        return lambda name: why.format(name) if _spelled(name) in absent else ""
    flags = host.processor.flags if host.processor is not None else None
    if accel != "kvm" or flags is None:
        return lambda _: ""
    has = {_letters(flag) for flag in flags}

    def look(name: str) -> str:
        is_lacking = _letters(name) in ALIKE and _letters(name) not in has
        return f"the CPU of this host has no {name} (/proc/cpuinfo)" if is_lacking else ""

    return look


def _listed(names: Sequence[str]) -> str:
    """Return names in a row, of many the first ones."""
    more = len(names) - SHOWN_FEATURES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:-more])} and {more} more"


def _words(target: Target) -> frozenset[str]:
    """Return the words of libvirt's domain capabilities, of a target that libvirt is a part of."""
    return frozenset() if target.libvirt is None else target.domain or frozenset()


def _check_libvirts_models(cpu: Cpu, target: Target) -> None:
    """Refuse a named model that libvirt does not list: it defines no such VM (``virCPUTranslate``,
    src/cpu/cpu.c, with ``fallback='forbid'``).
    """
    start = f"{MODELS}="
    models = {word.removeprefix(start) for word in _words(target) if word.startswith(start)}
    if models and cpu.model not in {*models, *WHOLE}:
        what = "a CPU model that this libvirt lists (virsh domcapabilities)"
        raise PlanError("cpu.model", f'"{cpu.model}"', _nearest(cpu.model, models, what))


def _check_model(cpu: Cpu, told: frozenset[str]) -> None:
    models = {word.removesuffix(MODEL) for word in told if word.endswith(MODEL)}
    if models and cpu.model not in {*models, *WHOLE}:
        raise PlanError("cpu.model", f'"{cpu.model}"', _expected(cpu.model, models, "a CPU model"))


def _check_features(cpu: Cpu, told: frozenset[str]) -> None:
    known = {word.partition(".")[2] for word in told if word.startswith(f"{OPTIONS}.")}
    spelled = {_spelled(name) for name in known}
    for index, feature in enumerate(cpu.features):
        if known and _spelled(feature[1:]) not in spelled:
            expected = _expected(feature[1:], known, "a feature")
            raise PlanError(f"cpu.features[{index}]", f'"{feature}"', expected)


def _expected(name: str, known: set[str], what: str) -> str:
    """Return what a name could have been that QEMU knows."""
    return _nearest(name, known, f"{what} that this QEMU knows (-cpu help)")


def _nearest(name: str, known: set[str], what: str) -> str:
    """Return what was expected, with the names that are nearest to one."""
    import difflib  # noqa: PLC0415 -- only for a message

    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"{what}, such as {', '.join(near)}" if near else what


def _spelled(name: str) -> str:
    """Return a name with hyphens, which QEMU takes for other signs (``feat2prop()``)."""
    return name.replace("_", "-").replace(".", "-")


def _letters(name: str) -> str:
    return _spelled(name).replace("-", "")
