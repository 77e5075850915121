"""What will run the VM, and since when each feature is in it.

A feature is used only where the target has it. That is known from the target itself, as QEMU tells
its types and its devices' options over QMP, or else from its version. The versions are those of
QEMU's and libvirt's release notes (https://wiki.qemu.org/ChangeLog, https://libvirt.org/news.html)
and of libvirt's formatdomain page.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from attrs import define, field, frozen

from kvmhooks.errors import PlanError

Version = tuple[int, int]

OLDEST_QEMU: Final = (7, 2)
OLDEST_LIBVIRT: Final = (9, 0)


@frozen(kw_only=True)
class Target:
    """A QEMU, and the libvirt that runs it; by default the oldest that kvmhooks knows."""

    qemu: Version = OLDEST_QEMU
    libvirt: Version | None = OLDEST_LIBVIRT
    """None: libvirt has no part in it."""
    told: frozenset[str] | None = None
    """QEMU's types and, as ``device.option``, options; None: only its version is known."""
    domain: frozenset[str] | None = None
    """What libvirt's domain capabilities list (``live.domain_capabilities``); None: not asked."""
    io_uring: bool = False
    """Whether QEMU can do I/O with io_uring, and the kernel lets it."""
    vhost_net: bool | None = None
    """Whether the host's kernel has ``/dev/vhost-net``; None: not known."""


OLDEST: Final = Target()
"""What is planned for where nothing is known of the target."""


@frozen
class Gate:
    """A feature, and since when QEMU and libvirt have it."""

    name: str
    qemu: Version
    libvirt: Version | None
    """None: no libvirt has an element for it."""
    told: str | None = None
    """What QEMU tells when it has it."""
    domain: str | None = None
    """What libvirt's domain capabilities list when it has it."""

    def lacking(self, target: Target) -> str | None:
        """What the target lacks for it, as a sentence; None where it has all."""
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


SMP_CACHE: Final = Gate("smp-cache", (10, 0), None)
BLK_IOTHREADS: Final = Gate(
    "iothread-vq-mapping of virtio-blk", (9, 0), (10, 0), "virtio-blk-pci.iothread-vq-mapping"
)
SCSI_IOTHREADS: Final = Gate(
    "iothread-vq-mapping of virtio-scsi", (10, 0), (11, 2), "virtio-scsi-pci.iothread-vq-mapping"
)
EMULATED_NVME: Final = Gate("an emulated NVMe disk", OLDEST_QEMU, (11, 5))
MODEL_VERSIONS: Final = Gate("a CPU model with its version", OLDEST_QEMU, (10, 10))
PANIC_PCI: Final = Gate("pvpanic-pci", OLDEST_QEMU, (9, 1), domain="devices/panic/model=pvpanic")
WATCHDOG_ITCO: Final = Gate("a working iTCO watchdog", OLDEST_QEMU, (9, 1))
SOUND_VIRTIO: Final = Gate("virtio-sound", (8, 2), (10, 4), "virtio-sound-pci")
PIPEWIRE: Final = Gate("sound through PipeWire", (8, 1), (9, 10))
READONLY_VIRTIOFS: Final = Gate("virtiofs for reading only", OLDEST_QEMU, (11, 0))
PASST: Final = Gate("passt", OLDEST_QEMU, (9, 2), domain="devices/interface/backendType=passt")
"""9.0 has it in its schema, and its parser refuses it (libvirt's issue 462; seen on Debian 12)."""
MICROVM: Final = Gate("microvm", OLDEST_QEMU, None)
SEV: Final = Gate("SEV", OLDEST_QEMU, OLDEST_LIBVIRT, "sev-guest", "features/sev")
_SECTYPE: Final = "features/launchSecurity/sectype"
SEV_SNP: Final = Gate("SEV-SNP", (9, 1), (10, 5), "sev-snp-guest", f"{_SECTYPE}=sev-snp")
TDX: Final = Gate("TDX", (10, 1), (11, 10), "tdx-guest", f"{_SECTYPE}=tdx")
"""libvirt's news name it first for 11.10, as something that is there already."""
TPM: Final = Gate(
    "a TPM's emulator (swtpm)",
    OLDEST_QEMU,
    OLDEST_LIBVIRT,
    domain="devices/tpm/backendModel=emulator",
)
VIRTIOFS: Final = Gate(
    "virtiofs", OLDEST_QEMU, OLDEST_LIBVIRT, domain="devices/filesystem/driverType=virtiofs"
)
SPICE: Final = Gate("SPICE", OLDEST_QEMU, OLDEST_LIBVIRT, domain="devices/graphics/type=spice")
RUN_WITH_USER: Final = Gate("-run-with user", (9, 1), OLDEST_LIBVIRT)

HYPERV: Final[dict[str, Gate]] = {
    name: Gate(
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
class Wishes:
    """What a spec asks of a target, and what of it was left out."""

    target: Target
    left_out: dict[str, None] = field(factory=dict)
    """A sentence for each, in their order."""

    def has(self, gate: Gate, at: str) -> bool:
        """Whether the target has a feature that the key ``at`` asks for; it is left out if not."""
        lacking = gate.lacking(self.target)
        if lacking is not None:
            self.leave_out(at, lacking)
        return lacking is None

    def leave_out(self, at: str, why: str) -> None:
        """Note that what ``at`` asks for is left out."""
        self.left_out[f"{at} is left out: {why}"] = None

    def require(self, gate: Gate, at: str, found: str) -> None:
        """Raise ``PlanError`` where the target lacks what the VM cannot be without."""
        lacking = gate.lacking(self.target)
        if lacking is not None:
            raise PlanError(at, found, f"something else: {lacking}")


def parse_version(text: str) -> Version:
    """The first two numbers of a version such as ``9.0.0``. Raises ``ValueError``."""
    major, minor, *_ = [*text.split("."), "0"]
    if not f"{major}{minor}".isascii() or not major.isdigit() or not minor.isdigit():
        raise ValueError(f"found {text!r}, expected numbers with dots between them")
    return int(major), int(minor)


def told_by(types: Collection[str], options: Mapping[str, Collection[str]]) -> frozenset[str]:
    """What ``Target.told`` says of a QEMU with these types, and options of devices."""
    named = {f"{device}.{option}" for device, has in options.items() for option in has}
    return frozenset({*types, *named})


def version_text(version: Version) -> str:
    """``9.0``."""
    return ".".join(map(str, version))
