"""``[security]``: guests whose memory the host cannot read."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

from kvmhooks.spec.enabling import enabled_by, on
from kvmhooks.spec.forms import Hexadecimal

SEV_ES: Final = 1 << 2
"""Of a SEV policy: registers are encrypted too (SEV API specification, table 2)."""

SNP_ALWAYS: Final = 1 << 17
"""Of a SEV-SNP policy: it has to be set (SEV-SNP firmware ABI, table 9)."""

SNP_SMT: Final = 1 << 16
"""Of a SEV-SNP policy: the host may have SMT."""

TYPES_OF_POLICIES: Final = {
    "sev": (1 << 0, False),
    "sev-es": (1 << 0, False),
    "sev-snp": (1 << 19, True),
    "tdx": (1 << 0, True),
}
"""The bit of the policy about debugging by the host, and whether it allows that when it is set."""


@frozen(kw_only=True)
class Security:
    """Encryption of the guest's memory."""

    type: Literal["none", "sev", "sev-es", "sev-snp", "tdx"] = "none"
    """AMD's SEV (-es: registers too; -snp: integrity too) or Intel's TDX."""
    policy: Hexadecimal | None = enabled_by("type")
    """The policy by which the guest's owner limits the host; by default no debugging, and what the
    type needs.
    """
    kernel_hashes: bool = enabled_by(
        on("type", "sev", "sev-es", "sev-snp"), "boot.kernel", default=False
    )
    """A kernel given directly is measured (AMD)."""
    cbitpos: int | None = enabled_by(on("type", "sev", "sev-es", "sev-snp"))
    """The bit of an address that says encrypted (AMD); by default what libvirt, QEMU or CPUID tells
    of this host: nothing is guessed.
    """
    reduced_phys_bits: int | None = enabled_by(on("type", "sev", "sev-es", "sev-snp"))
    """By how many bits addresses are shorter then (AMD); by default what libvirt or QEMU tells, or
    1."""
