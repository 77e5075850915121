"""The encryption of the guest's memory (docs/system/confidential-guest-support.rst)."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.placement.model import Plan


def arguments(plan: Plan) -> list[str]:
    """Return the object of ``-machine confidential-guest-support=lsec0`` (qapi/qom.json)."""
    security = plan.hardware.security
    if security is None:
        return []
    policy = int(security.policy, 16)
    if security.type == "tdx":
        return option("object", {"qom-type": "tdx-guest", "id": "lsec0", "attributes": policy})
    kind = "sev-snp-guest" if security.type == "sev-snp" else "sev-guest"
    return option(
        "object",
        {
            "qom-type": kind,
            "id": "lsec0",
            "cbitpos": security.cbitpos,
            "reduced-phys-bits": security.reduced_phys_bits,
            "policy": policy,
            "kernel-hashes": True if security.kernel_hashes else None,
        },
    )
