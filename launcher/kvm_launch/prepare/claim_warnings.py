"""The consequences of a VM's claim for others on the host, told before it is made."""

from __future__ import annotations

from collections.abc import Sequence

from kvm_launch.host.isolation import unable
from kvmhooks.errors import KvmhooksError, words_of
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.registry.unit_affinities import warnings
from kvmhooks.isolate.registry.unserved import told


def claim_warnings(registry: Registry, claims: Sequence[Claim]) -> list[str]:
    """Return which units of systemd cannot start beside these claims, and what cannot be set.

    Nobody has to run without a VM because that cannot be told: why is then what is returned.
    """
    if unable(registry.system):
        return []
    try:
        others = registry.claims()
        absent = [
            f"{claim.name}: {sentence}"
            for claim in claims
            for sentence in told(registry.system, claim, others, ())
        ]
    except (KvmhooksError, OSError, ValueError) as error:
        return [f"the host's settings could not be looked at: {words_of(error)}"]
    try:
        return [*warnings(registry.system, claims, others), *absent]
    except (KvmhooksError, OSError, ValueError) as error:
        return [f"systemd: its units could not be looked at: {words_of(error)}", *absent]
