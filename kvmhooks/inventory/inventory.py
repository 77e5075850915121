"""The inventory: all that a plan is made on, as one value.

It is taken by ``kvmhooks.survey.survey.take`` alone; whoever has only a ``Host`` plans on a host
that nobody else uses, without limits, for the oldest programs that kvmhooks knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import evolve, field, frozen

from kvmhooks.host.model import Host
from kvmhooks.inventory.hypervisor import Hypervisor
from kvmhooks.inventory.usage import Holding, merged, of_claim, second_identity_of
from kvmhooks.isolate.claims.administrator import HOST, Limits, file_of
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.values import CpuSet, union

ELSEWHERE: Final = "00000000-0000-0000-0000-000000000000"
"""The UUID of the QEMU from which a guest comes: it holds what it has as another VM does."""


@frozen(kw_only=True)
class Inventory:
    """A host with what others hold of it, its administrator's limits, and what runs VMs there."""

    host: Host
    holdings: tuple[Holding, ...] = ()
    """The resources of every VM that runs or has a claim, the one that is planned included."""
    expected: tuple[Holding, ...] = ()
    """The resources of domains that are to start with the host and do not run yet. They hold
    nothing; of places that are equal one without theirs is taken."""
    limits: Limits = field(factory=Limits, eq=False)
    """The administrator's (``[host]`` of ``/etc/kvmhooks/kvmhooks.toml``)."""
    defaults: Mapping[str, str] = field(factory=dict)
    """The administrator's settings for every VM that is described, as claims have them."""
    policies: Mapping[str, Mapping[str, str]] = field(factory=dict)
    """The administrator's settings for single VMs (``vm.d``), by their names."""
    hypervisor: Hypervisor = field(factory=Hypervisor)
    """The programs for a VM that names none of its own."""
    hypervisors: Mapping[str, Hypervisor] = field(factory=dict)
    """The programs of each VM that was known when it was taken, by the VM's name."""
    warnings: tuple[str, ...] = ()
    """Flaws and gaps, each as a sentence with its place."""

    @property
    def housekeeping(self) -> CpuSet | None:
        """The CPUs that the administrator keeps for the host; None where none are named.

        Those that are offline are no CPUs now.
        """
        return (self.limits.housekeeping & self.host.online) or None

    def kept_beside(self, others: Iterable[Holding]) -> CpuSet | None:
        """Return those of them that none of some other VMs has for itself; None without any."""
        taken = union(held.alone(self.host) for held in others)
        return ((self.housekeeping or CpuSet()) - taken) or None

    def settings_for(self, name: str) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """Return each file with settings of the administrator for a VM, the nearest to it last."""
        own = self.policies.get(name)
        there = [(f"/{HOST}", self.defaults)] if self.defaults else []
        return (*there, *([(f"/{file_of(name)}", own)] if own else []))

    def hypervisor_of(self, name: str) -> Hypervisor:
        """Return the programs of a VM."""
        return self.hypervisors.get(name, self.hypervisor)

    def others_of(self, *identities: str) -> list[Holding]:
        """Return what VMs but these hold, in an order of their own.

        A VM that came here while it ran may hold what it has as the second of its kind.
        """
        return _in_order(self.holdings, identities)

    def host_beside(self, *identities: str) -> Host:
        """Return the host as the VM of these finds it: its own key is not one that others use."""
        own = _own(identities)
        counts = Counter(each.key for each in self.holdings if each.uuid in own and each.has_key)
        cgroup = self.host.cgroup
        if not counts or cgroup is None or cgroup.misc_used is None:
            return self.host
        used = {kind: max(count - counts[kind], 0) for kind, count in cgroup.misc_used.items()}
        return evolve(self.host, cgroup=evolve(cgroup, misc_used=used))

    def expected_beside(self, *identities: str) -> list[Holding]:
        """Return what domains but these are expected to hold."""
        return _in_order(self.expected, identities)

    def beside(self, holdings: Iterable[Holding]) -> Inventory:
        """Return the inventory with more VMs; those that it knows already stay as they are."""
        known = {holding.uuid for holding in self.holdings}
        more = [holding for holding in holdings if holding.uuid not in known]
        return evolve(self, holdings=(*self.holdings, *more)) if more else self

    def receiving(self, identity: str) -> Inventory:
        """Return the inventory with the QEMU from which a guest comes as another VM."""
        own = {identity, second_identity_of(identity)}
        return evolve(
            self,
            holdings=tuple(
                evolve(holding, uuid=ELSEWHERE) if holding.uuid in own else holding
                for holding in self.holdings
            ),
        )


def inventory_on(place: Host | Inventory, claims: Sequence[Claim | Holding] = ()) -> Inventory:
    """Return the inventory with more claims on it, or one of a host that nothing else is known of.

    A claim counts its huge pages as promised and not mapped yet.
    """
    inventory = Inventory(host=place) if isinstance(place, Host) else place
    if not claims:
        return inventory
    more = [of_claim(claim) if isinstance(claim, Claim) else claim for claim in claims]
    return evolve(inventory, holdings=merged([*inventory.holdings, *more]))


def _in_order(holdings: Iterable[Holding], without: Sequence[str]) -> list[Holding]:
    own = _own(without)
    return sorted(
        (holding for holding in holdings if holding.uuid not in own),
        key=lambda holding: (holding.uuid, holding.name),
    )


def _own(identities: Sequence[str]) -> set[str]:
    """Return the UUIDs under which these VMs hold something."""
    return {*identities, *map(second_identity_of, identities)} - {""}
