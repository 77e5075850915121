"""The resources of a host that other VMs hold, as far as a plan must know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.values import CpuSet, PciAddress

FORMAT: Final = 1
"""The version of the JSON form."""


@frozen(kw_only=True)
class Holding:
    """The resources of the host that one VM holds."""

    name: str
    uuid: str
    exclusive: CpuSet = CpuSet()
    """CPUs that nothing else may run on."""
    dedicated: CpuSet = CpuSet()
    """CPUs of its vCPUs that no other VM's vCPU may run on, though the host's tasks may."""
    idle: CpuSet = CpuSet()
    """Siblings of its CPUs that nobody may use (``smt = "isolate"``)."""
    keeps_siblings: bool = False
    """All siblings of its exclusive CPUs are such, though ``idle`` does not tell them."""
    floating: tuple[tuple[CpuSet, int], ...] = ()
    """(CPUs, vCPUs): so many vCPUs float over these CPUs. They give way to dedicated ones."""
    memory: tuple[tuple[int, int], ...] = ()
    """(node, KiB): ordinary memory that it has there or may come to have."""
    hugepages: tuple[tuple[int, int, int], ...] = ()
    """(node, page size in KiB, count): huge pages that it was promised and has not mapped, so that
    the kernel still counts them as free. Node -1 is any node."""
    ways: tuple[tuple[int, int], ...] = ()
    """(L3 cache id, mask): its own ways."""
    pci: tuple[PciAddress, ...] = ()
    """The devices that it has."""

    def to_json(self) -> dict[str, Any]:
        """Return the holding as JSON types, with the format's version."""
        return {
            "format": FORMAT,
            "name": self.name,
            "uuid": self.uuid,
            "exclusive": str(self.exclusive),
            "dedicated": str(self.dedicated),
            "idle": str(self.idle),
            "keeps_siblings": self.keeps_siblings,
            "floating": [{"cpus": str(cpus), "vcpus": count} for cpus, count in self.floating],
            "memory": [{"node": node, "kib": kib} for node, kib in self.memory],
            "hugepages": [
                {"node": node, "size_kib": size_kib, "count": count}
                for node, size_kib, count in self.hugepages
            ],
            "ways": [{"cache": cache, "mask": f"{mask:x}"} for cache, mask in self.ways],
            "pci": [str(address) for address in self.pci],
        }


def of_claim(claim: Claim, *, is_mapped: bool = False) -> Holding:
    """Return what the VM of a claim holds; with ``is_mapped`` its huge pages are free no longer."""
    bound = claim.asks_of(FunctionDemand.KIND)
    return Holding(
        name=claim.name,
        uuid=claim.uuid,
        exclusive=claim.exclusive,
        keeps_siblings=claim.setting("isolation.siblings") == "idle",
        hugepages=() if is_mapped else _hugepages_of(claim),
        pci=tuple(map(PciAddress.parse, dict.fromkeys((*claim.devices, *bound)))),
    )


def _hugepages_of(claim: Claim) -> tuple[tuple[int, int, int], ...]:
    return tuple((each.node, each.size_kib, each.count) for each in claim.of(HugePageDemand))


def of_pins(
    pins: Iterable[CpuSet], online: CpuSet, *, name: str, uuid: str, dedicated_up_to: int = 1
) -> Holding:
    """Return what a running VM without a claim holds, from the affinity of each of its vCPUs.

    A vCPU on no more than ``dedicated_up_to`` CPUs has them to itself; others float.
    """
    own, floating = CpuSet(), Counter[CpuSet]()
    for pin in pins:
        cpus = pin & online
        if not cpus:
            continue
        if len(cpus) <= dedicated_up_to:
            own |= cpus
        else:
            floating[cpus] += 1
    return Holding(
        name=name,
        uuid=uuid,
        dedicated=own,
        floating=tuple(sorted(floating.items(), key=lambda item: (item[0].mask, item[1]))),
    )


def from_json(document: object) -> Holding:
    """Read back what ``Holding.to_json`` wrote, or a claim's own JSON (a claim has no ``memory``).

    Raises ``PlanError`` for anything else.
    """
    if not isinstance(document, dict):
        raise PlanError("claims", type(document).__name__, "an object for each VM")
    if "settings" in document:
        return of_claim(Claim.from_file(document))
    if document.get("format") != FORMAT:
        raise PlanError("claims", f"format {document.get('format')!r}", f"format {FORMAT}")
    try:
        return Holding(
            name=str(document["name"]),
            uuid=str(document["uuid"]),
            exclusive=CpuSet.parse(document["exclusive"]),
            dedicated=CpuSet.parse(document["dedicated"]),
            idle=CpuSet.parse(document["idle"]),
            keeps_siblings=document["keeps_siblings"] is True,
            floating=tuple(
                (CpuSet.parse(share["cpus"]), int(share["vcpus"])) for share in document["floating"]
            ),
            memory=tuple((int(share["node"]), int(share["kib"])) for share in document["memory"]),
            hugepages=tuple(
                (int(pages["node"]), int(pages["size_kib"]), int(pages["count"]))
                for pages in document["hugepages"]
            ),
            ways=tuple((int(ways["cache"]), int(ways["mask"], 16)) for ways in document["ways"]),
            pci=tuple(PciAddress.parse(address) for address in document["pci"]),
        )
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise PlanError("claims", f"{type(error).__name__}: {error}", "a holding") from error
