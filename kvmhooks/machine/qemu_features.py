"""The features that not every QEMU or libvirt has, and since when each is in them.

A feature is used only where the target has it. That is known from the target itself, as QEMU tells
its types and its devices' options over QMP, or else from its version. The versions are those of
QEMU's and libvirt's release notes (https://wiki.qemu.org/ChangeLog, https://libvirt.org/news.html)
and of libvirt's formatdomain page.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.machine.target import OLDEST_LIBVIRT, OLDEST_QEMU, Target, Version, version_text


@frozen
class Feature:
    """A feature, and since when QEMU and libvirt have it."""

    name: str
    qemu: Version
    libvirt: Version | None
    """None: no libvirt has an element for it."""
    told: str | None = None
    """The word that QEMU tells when it has it."""
    domain: str | None = None
    """The word that libvirt's domain capabilities list when it has it."""

    def lacking(self, target: Target) -> str | None:
        """Return what the target lacks for it, as a sentence; None where it has all."""
        if self.name in target.known:
            return None
        knows = target.told is not None and self.told is not None
        has = self.told in (target.told or ()) if knows else target.qemu >= self.qemu
        if not has:
            since, this = version_text(self.qemu), version_text(target.qemu)
            return f"{self.name} is in QEMU since {since}, this is {this}"
        return None if target.libvirt is None else self._libvirt_lacks(target, target.libvirt)

    def _libvirt_lacks(self, target: Target, version: Version) -> str | None:
        if self.libvirt is None:
            return f"libvirt has no element for {self.name}"
        told = target.domain or ()
        if self.domain is not None and f"{self.domain.partition('=')[0]}?" in told:
            has = self.domain in told
            return None if has else f"libvirt's domain capabilities lack it here: {self.name}"
        if version < self.libvirt:
            since, this = version_text(self.libvirt), version_text(version)
            return f"{self.name} is in libvirt since {since}, this is {this}"
        return None


SMP_CACHE: Final = Feature("smp-cache", (10, 0), None)
BLK_IOTHREADS: Final = Feature(
    "iothread-vq-mapping of virtio-blk", (9, 0), (10, 0), "virtio-blk-pci.iothread-vq-mapping"
)
SCSI_IOTHREADS: Final = Feature(
    "iothread-vq-mapping of virtio-scsi", (10, 0), (11, 2), "virtio-scsi-pci.iothread-vq-mapping"
)
EMULATED_NVME: Final = Feature("an emulated NVMe disk", OLDEST_QEMU, (11, 5))
MODEL_VERSIONS: Final = Feature("a CPU model with its version", OLDEST_QEMU, (10, 10))
PASST: Final = Feature("passt", OLDEST_QEMU, (9, 2), domain="devices/interface/backendType=passt")
"""9.0 has it in its schema, and its parser refuses it (libvirt's issue 462; seen on Debian 12)."""
MICROVM: Final = Feature("microvm", OLDEST_QEMU, None)
SEV: Final = Feature("SEV", OLDEST_QEMU, OLDEST_LIBVIRT, "sev-guest", "features/sev")
_SECTYPE: Final = "features/launchSecurity/sectype"
SEV_SNP: Final = Feature("SEV-SNP", (9, 1), (10, 5), "sev-snp-guest", f"{_SECTYPE}=sev-snp")
TDX: Final = Feature("TDX", (10, 1), (11, 10), "tdx-guest", f"{_SECTYPE}=tdx")
"""libvirt's news name it first for 11.10, as something that is there already."""
RUN_WITH_USER: Final = Feature("-run-with user", (9, 1), OLDEST_LIBVIRT)

HYPERV: Final[dict[str, Feature]] = {
    name: Feature(
        f"Hyper-V's {name}",
        OLDEST_QEMU,
        since,
        domain=None if "-" in name else f"features/hyperv/features={name}",
    )
    for since, names in {
        OLDEST_LIBVIRT: (
            *("relaxed", "vapic", "spinlocks", "vpindex", "runtime", "synic", "stimer"),
            *("stimer-direct", "reset", "frequencies", "reenlightenment", "tlbflush", "ipi"),
            *("avic", "evmcs"),
        ),
        (10, 7): ("emsr_bitmap", "xmm_input"),
        (11, 0): ("tlbflush-direct", "tlbflush-extended"),
    }.items()
    for name in names
}
"""By libvirt's names; QEMU 7.2 has all (docs/system/i386/hyperv.rst). One with a hyphen is a part
of another's element, which the domain capabilities do not list."""


@define
class FeatureUse:
    """The features that a spec asks of a target, and those of them that were left out."""

    target: Target
    left_out: dict[str, None] = field(factory=dict)
    """A sentence for each, in their order."""
    required: dict[str, None] = field(factory=dict)
    """The names of those that the VM cannot be without."""

    def has(self, feature: Feature, at: str) -> bool:
        """Return whether the target has a feature that ``at`` asks for; it is left out if not."""
        lacking = feature.lacking(self.target)
        if lacking is not None:
            self.leave_out(at, lacking)
        return lacking is None

    def leave_out(self, at: str, why: str) -> None:
        """Note that what ``at`` asks for is left out."""
        self.left_out[f"{at} is left out: {why}"] = None

    def tell(self, sentence: str) -> None:
        """Note a sentence on something of which a part is left out."""
        self.left_out[sentence] = None

    def require(self, feature: Feature, at: str, found: str) -> None:
        """Raise ``PlanError`` where the target lacks what the VM cannot be without."""
        self.required[feature.name] = None
        lacking = feature.lacking(self.target)
        if lacking is not None and not self.target.runs_it:
            raise PlanError(at, found, f"something else: {lacking}")
