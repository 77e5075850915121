"""The encryption of a guest's memory."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host
from kvmhooks.machine.qemu_features import SEV, SEV_SNP, TDX, Feature, FeatureUse
from kvmhooks.spec.model import VmSpec

FEATURES: Final[dict[str, Feature]] = {"sev": SEV, "sev-es": SEV, "sev-snp": SEV_SNP, "tdx": TDX}

POLICIES: Final = {"sev": "0x3", "sev-es": "0x7", "sev-snp": "0x30000", "tdx": "0x10000000"}
"""No debugging, no sharing of keys, and for sev-es encrypted registers: the bits are those of the
SEV API specification, table 2, the SEV-SNP firmware ABI, table 9 (bit 17 must be set), and for TDX
of ATTRIBUTES, whose bit 28 (SEPT_VE_DISABLE) Linux guests insist on (qapi/qom.json)."""

MODULES: Final = {"sev": "sev", "sev-es": "sev_es", "sev-snp": "sev_snp", "tdx": "tdx"}
"""Parameters of kvm_amd and kvm_intel that say what is switched on."""

VENDORS: Final = {"sev": "amd", "sev-es": "amd", "sev-snp": "amd", "tdx": "intel"}
"""The vendors whose processors have it."""


@frozen(kw_only=True)
class LaunchSecurity:
    """The encryption of a guest's memory."""

    type: str
    policy: str
    kernel_hashes: bool
    cbitpos: int
    reduced_phys_bits: int


def choose_security(
    spec: VmSpec, host: Host, features: FeatureUse, *, accel: str
) -> LaunchSecurity | None:
    """Return the one asked for, checked: without it the VM must not start. Raises ``PlanError``."""
    asked = spec.security
    if asked.type == "none":
        return None
    found = f'"{asked.type}"'
    if accel != "kvm":
        raise PlanError("security.type", f"{found} under {accel}", "KVM")
    vendor = host.kvm.vendor if host.kvm else None
    if vendor is not None and vendor != VENDORS[asked.type]:
        raise PlanError("security.type", f"{found} on a processor of {vendor}", VENDORS[asked.type])
    parameters = (host.kvm.module_parameters if host.kvm else None) or {}
    value = parameters.get(MODULES[asked.type])
    if value in {"N", "0"}:
        raise PlanError("security.type", found, f"a host that has it: KVM says {asked.type} is off")
    features.require(FEATURES[asked.type], "security.type", found)
    return LaunchSecurity(
        type=asked.type,
        policy=asked.policy or POLICIES[asked.type],
        kernel_hashes=asked.kernel_hashes,
        cbitpos=asked.cbitpos or (51 if asked.type == "sev-snp" else 47),
        reduced_phys_bits=asked.reduced_phys_bits,
    )
