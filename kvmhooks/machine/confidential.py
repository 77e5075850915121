"""The encryption of a guest's memory: what the host can do, and what the guest must be.

KVM tells by parameters of its modules what the host can do. They read ``N`` where the processor,
its firmware or the kernel cannot (``sev_hardware_setup()``, arch/x86/kvm/svm/sev.c; ``enable_tdx``,
arch/x86/kvm/vmx/tdx.c): ``kvm_amd`` has ``sev_es`` since 5.11 and ``sev_snp`` since 6.11, and
``kvm_intel`` has ``tdx`` since 6.16 where it is built with it (CONFIG_KVM_INTEL_TDX).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.machine.qemu_features import SEV, SEV_SNP, TDX, Feature, FeatureUse
from kvmhooks.machine.target import CpuAnswers, Target, number_told
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.security import SNP_SMT, TYPES_OF_POLICIES

FEATURES: Final[dict[str, Feature]] = {"sev": SEV, "sev-es": SEV, "sev-snp": SEV_SNP, "tdx": TDX}

POLICIES: Final = {"sev": "0x3", "sev-es": "0x7", "sev-snp": "0x30000", "tdx": "0x10000000"}
"""No debugging, no sharing of keys, and for sev-es encrypted registers: the bits are those of the
SEV API specification, table 2, the SEV-SNP firmware ABI, table 9 (bit 17 must be set), and for TDX
of ATTRIBUTES, whose bit 28 (SEPT_VE_DISABLE) Linux guests insist on (qapi/qom.json)."""

MODULES: Final = {
    "sev": "kvm_amd.sev",
    "sev-es": "kvm_amd.sev_es",
    "sev-snp": "kvm_amd.sev_snp",
    "tdx": "kvm_intel.tdx",
}
"""The module's parameter that says what is switched on, as ``host.kvm.module_parameters`` has it.
"""

VENDORS: Final = {"sev": "amd", "sev-es": "amd", "sev-snp": "amd", "tdx": "intel"}
"""The vendors whose processors have it."""

_OFF: Final = frozenset({"N", "n", "0"})

KEYS: Final = {"sev": "sev", "sev-es": "sev_es", "sev-snp": "sev_es", "tdx": "tdx"}
"""The kind of key that a guest has, by the kernel's name (kernel/cgroup/misc.c): of sev-snp it is
the same as of sev-es (``sev_asid_new()``, arch/x86/kvm/svm/sev.c)."""

_KEYS_NAMED: Final = {"sev": "ASIDs for SEV", "sev_es": "ASIDs for SEV-ES", "tdx": "HKIDs for TDX"}

_WITHOUT_FLASH: Final = frozenset({"sev-snp", "tdx"})
"""Their firmware is memory of the guest's own, measured at the start: flash, which is
read-only slots, is none (QEMU's «hw/i386: Add support for loading BIOS using guest_memfd», 9.1;
docs/system/i386/tdx.rst)."""

_WITHOUT_SMM: Final = frozenset({"sev-es", "sev-snp", "tdx"})
"""Guests whose registers are encrypted have no system management mode («KVM: SVM: Do not report
support for SMM for an SEV-ES guest», since 5.11), which keeps secure boot's variables."""

REDUCED_PHYS_BITS: Final = 1
"""The bits by which a guest's addresses are shorter, where nobody tells another number: QEMU's own
for every processor (``sev_get_capabilities()``, target/i386/sev.c)."""

_NOT_IN_KVM: Final = "not enabled in KVM"
"""QEMU's words where KVM has no SEV; others are about the keys of the platform, which it exports
beside (``sev_get_capabilities()``, ``sev_get_pdh_info()``)."""


@frozen(kw_only=True)
class KeyCount:
    """The number of keys of one kind that a host has for encrypted guests."""

    total: int
    used: int
    source: str
    """The place that tells the total."""
    holders: tuple[str, ...] = ()
    """The names of the VMs that are known to have one, or to be about to."""


@frozen(kw_only=True)
class LaunchSecurity:
    """The encryption of a guest's memory."""

    type: str
    policy: str
    kernel_hashes: bool
    cbitpos: int | None
    """None: not known, and libvirt fills it in (``qemuProcessUpdateSEVInfo()``)."""
    reduced_phys_bits: int


def choose_security(
    spec: VmSpec,
    host: Host,
    features: FeatureUse,
    *,
    accel: str,
    keys: Mapping[str, KeyCount],
) -> LaunchSecurity | None:
    """Return the one asked for, checked: without it the VM must not start.

    ``keys`` are those that the host has, by ``KEYS``. Raises ``PlanError``.
    """
    asked = spec.security
    if asked.type == "none":
        return None
    found = f'"{asked.type}"'
    if accel != "kvm":
        raise PlanError("security.type", f"{found} under {accel}", "KVM")
    _check_vendor(asked.type, host)
    features.require(FEATURES[asked.type], "security.type", found)
    if not features.target.runs_it:
        _check_host(asked.type, host)
        _check_qemu(asked.type, features.target)
        _check_keys(asked.type, keys)
        _check_firmware(spec)
        _check_policy(spec, host)
    return LaunchSecurity(
        type=asked.type,
        policy=asked.policy or POLICIES[asked.type],
        kernel_hashes=asked.kernel_hashes,
        cbitpos=_cbitpos(spec, host, features),
        reduced_phys_bits=asked.reduced_phys_bits
        or number_told(features.target, "features/sev/reducedPhysBits")
        or _answers(features.target).reduced_phys_bits
        or REDUCED_PHYS_BITS,
    )


def security_warnings(spec: VmSpec) -> Iterator[str]:
    """Tell of a policy by which the host may read the guest after all."""
    kind, policy = spec.security.type, spec.security.policy
    if policy is not None and kind in TYPES_OF_POLICIES:
        bit, is_debug_if_set = TYPES_OF_POLICIES[kind]
        if bool(int(policy, 16) & bit) is is_debug_if_set:
            yield (
                f"security.policy: {policy} lets the host debug the guest, so the host can read "
                f"its memory ({'set' if is_debug_if_set else 'clear'} is {bit:#x})"
            )


def _check_vendor(kind: str, host: Host) -> None:
    vendor = host.kvm.vendor if host.kvm else None
    if vendor is not None and vendor != VENDORS[kind]:
        raise PlanError("security.type", f'"{kind}" on a processor of {vendor}', VENDORS[kind])


def _check_host(kind: str, host: Host) -> None:
    """See that the host's KVM has it, as far as the host is known. Raises ``PlanError``."""
    found = f'"{kind}"'
    parameters = (host.kvm.module_parameters if host.kvm else None) or {}
    module, _, name = MODULES[kind].partition(".")
    is_told = any(known.startswith(f"{module}.") for known in parameters)
    value = parameters.get(MODULES[kind])
    if value is None and is_told:
        why = f"this {module} has no parameter {name}: the kernel is older, or built without it"
        raise PlanError("security.type", found, f"a host that has it: {why}")
    if value in _OFF:
        raise PlanError(
            "security.type", found, f"a host that has it: {MODULES[kind]} is {value} here"
        )


def _check_keys(kind: str, keys: Mapping[str, KeyCount]) -> None:
    """See that the host has a key for one more guest of this kind. Raises ``PlanError``."""
    count = keys.get(KEYS[kind])
    if count is None or count.used < count.total:
        return
    there = f"{count.total} {_KEYS_NAMED[KEYS[kind]]} here ({count.source})"
    if count.total == 0:
        setup = "" if kind == "tdx" else ", see «minimum SEV ASID» in the firmware's setup"
        raise PlanError("security.type", f'"{kind}", and {there}', f"a host with one{setup}")
    others = count.used - len(count.holders)
    who = [*count.holders, *([f"{others} that are not known here"] if others > 0 else [])]
    used = f"{count.used} in use: {', '.join(who)}"
    raise PlanError("security.type", f'"{kind}", and of {there} {used}', "one that is free")


def _check_firmware(spec: VmSpec) -> None:
    """See that the guest's firmware can be what this needs. Raises ``PlanError``."""
    kind, boot = spec.security.type, spec.boot
    if kind in _WITHOUT_FLASH and boot.firmware == "uefi":
        raise PlanError(
            "security.type",
            f'"{kind}" with boot.firmware = "uefi", which is flash',
            "boot.firmware = the path of an OVMF that is one file, such as OVMF.amdsev.fd",
        )
    if kind in _WITHOUT_SMM and boot.secure_boot:
        raise PlanError(
            "boot.secure_boot", f'true with security.type = "{kind}"', "false: it has no SMM"
        )


def _check_policy(spec: VmSpec, host: Host) -> None:
    """See that the host fulfils what the guest's owner wants. Raises ``PlanError``.

    Without bit 16 the firmware refuses a guest of sev-snp while the host has SMT («KVM: SVM: Allow
    SNP guest policy disallow running with SMT enabled»).
    """
    policy = spec.security.policy
    if spec.security.type != "sev-snp" or policy is None or int(policy, 16) & SNP_SMT:
        return
    if any(len(cpu.siblings) > 1 for cpu in host.cpus or () if cpu.siblings):
        raise PlanError(
            "security.policy",
            f"{policy}, which forbids SMT, on a host with it",
            f"bit 16 ({SNP_SMT:#x}) set, or SMT off (/sys/devices/system/cpu/smt/control)",
        )


def _check_qemu(kind: str, target: Target) -> None:
    """See that KVM has it, by QEMU's own answer where libvirt tells nothing. Raises ``PlanError``.

    It is asked in one way for all of AMD's (``query-sev-capabilities``).
    """
    told = _answers(target).without_sev
    is_told_by_libvirt = target.libvirt is not None and "features/sev?" in (target.domain or ())
    if kind != "tdx" and told.endswith(_NOT_IN_KVM) and not is_told_by_libvirt:
        raise PlanError("security.type", f'"{kind}"', f"a host that has it: QEMU says: {told}")


def _cbitpos(spec: VmSpec, host: Host, features: FeatureUse) -> int | None:
    """Return the bit that is said, that libvirt or QEMU tells, or that CPUID tells of this host.

    QEMU refuses another than the processor's («cbitpos check failed», target/i386/sev.c), so none
    is guessed: libvirt fills it in where none is said, and without libvirt the VM is refused once
    QEMU was asked, as a start does. Raises ``PlanError``.
    """
    asked, target = spec.security.cbitpos, features.target
    if spec.security.type == "tdx":
        return asked
    by_libvirt, by_qemu = number_told(target, "features/sev/cbitpos"), _answers(target).cbitpos
    sev = host.processor.sev if host.processor is not None else None
    known, who = next(
        (
            (bit, who)
            for bit, who in (
                (by_libvirt, "libvirt tells"),
                (by_qemu, "QEMU tells"),
                (None if sev is None else sev.cbitpos, "CPUID tells"),
            )
            if bit is not None
        ),
        (None, ""),
    )
    if asked is not None and known not in {None, asked}:
        raise PlanError("security.cbitpos", str(asked), f"{known}, as {who} of this host")
    if asked is None and known is None and target.libvirt is None and not target.runs_it:
        if "kvm" in target.answers:
            raise PlanError("security.cbitpos", f"nothing, and {_unknown(target)}", _WHERE_TOLD)
        features.leave_out("security.cbitpos", f"nobody tells it of this host: it is {_WHERE_TOLD}")
    return known if asked is None else asked


def _unknown(target: Target) -> str:
    """Return why nobody tells the bit."""
    told = _answers(target).without_sev
    return f"QEMU does not tell it ({told})" if told else "nobody tells it of this host"


_WHERE_TOLD: Final = (
    "the processor's, such as 51: EBX[5:0] of CPUID 0x8000001F (`cpuid -1 -l 0x8000001f`; with the "
    "module cpuid loaded root is told it here)"
)


def _answers(target: Target) -> CpuAnswers:
    """Return QEMU's answers under KVM; empty ones where it was not asked."""
    return target.answers.get("kvm") or CpuAnswers()
