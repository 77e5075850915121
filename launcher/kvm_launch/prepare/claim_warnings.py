"""The consequences of a VM's claim for others on the host, told before it is made."""

from __future__ import annotations

from collections.abc import Sequence

from kvm_launch.host.isolation import unable
from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.registry import absent_settings
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.registry.unit_affinities import warnings


def claim_warnings(registry: Registry, claims: Sequence[Claim]) -> list[str]:
    """Return which units of systemd cannot start beside these claims, and what cannot be set.

    Nobody has to run without a VM because that cannot be told: why is then what is returned.
    """
    if unable(registry.system):
        return []
    absent = absent_settings.warnings(registry.system, claims)
    try:
        return [*warnings(registry.system, claims, registry.claims()), *absent]
    except (KvmhooksError, OSError, ValueError) as error:
        return [f"systemd: its units could not be looked at: {error}", *absent]
