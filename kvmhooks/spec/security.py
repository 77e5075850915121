"""``[security]``: guests whose memory the host cannot read."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from kvmhooks.spec.forms import Hexadecimal


@frozen(kw_only=True)
class Security:
    """Encryption of the guest's memory."""

    type: Literal["none", "sev", "sev-es", "sev-snp", "tdx"] = "none"
    """AMD's SEV (-es: registers too; -snp: integrity too) or Intel's TDX."""
    policy: Hexadecimal | None = None
    """The policy by which the guest's owner limits the host; by default no debugging, and what the
    type needs.
    """
    kernel_hashes: bool = False
    """A kernel given directly is measured (AMD)."""
    cbitpos: int | None = None
    """The bit of an address that says encrypted (AMD); by default 51 for sev-snp, else 47."""
    reduced_phys_bits: int = 1
    """By how many bits addresses are shorter then (AMD)."""
