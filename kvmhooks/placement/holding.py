"""What other VMs hold of a host, as far as a plan must know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.isolate.claim import Claim
from kvmhooks.isolate.pages import ANY_NODE
from kvmhooks.placement.model import Plan
from kvmhooks.values import CpuSet, PciAddress

FORMAT: Final = 1
"""The version of the JSON form."""


@frozen(kw_only=True)
class Holding:
    """What one VM holds of the host."""

    name: str
    uuid: str
    exclusive: CpuSet = CpuSet()
    """CPUs that nothing else may run on."""
    dedicated: CpuSet = CpuSet()
    """CPUs of its vCPUs that no other VM's vCPU may run on, though the host's tasks may."""
    idle: CpuSet = CpuSet()
    """Siblings of its CPUs that nobody may use (``smt = "isolate"``)."""
    keeps_siblings: bool = False
    """Whether all siblings of its exclusive CPUs are such, though ``idle`` does not tell them."""
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
        """The holding as JSON types, with the format's version."""
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
    """What the VM of a claim holds; with ``is_mapped`` its huge pages are no longer free ones."""
    return Holding(
        name=claim.name,
        uuid=claim.uuid,
        exclusive=claim.exclusive,
        keeps_siblings=claim.setting("isolation.siblings") == "idle",
        hugepages=() if is_mapped else claim.hugepages,
        pci=tuple(map(PciAddress.parse, dict.fromkeys((*claim.devices, *claim.bound)))),
    )


def of_plan(plan: Plan, *, is_mapped: bool = False) -> Holding:
    """What a VM holds that was started, or will be, as planned."""
    pages: Counter[tuple[int, int]] = Counter()
    memory: Counter[int] = Counter()
    for cell in plan.cells:
        node = ANY_NODE if cell.node is None else cell.node
        if cell.is_huge:
            pages[node, cell.page_kib] += cell.pages
        else:
            memory[node] += cell.memory_kib
    floats = Counter(pin.cpus for pin in plan.vcpus if pin.vcpu not in plan.dedicated)
    promised = tuple((node, size, count) for (node, size), count in sorted(pages.items()))
    return Holding(
        name=plan.name,
        uuid=plan.uuid,
        exclusive=plan.exclusive,
        dedicated=plan.dedicated_cpus - plan.exclusive,
        idle=plan.idle,
        floating=tuple(sorted(floats.items(), key=lambda item: item[0].first())),
        memory=tuple(sorted(memory.items())),
        hugepages=() if is_mapped else promised,
        ways=tuple((share.cache, share.mask) for share in plan.caches if share.type != "data"),
        pci=tuple(place.address for place in plan.pci),
    )


def of_pins(
    pins: Iterable[CpuSet], online: CpuSet, *, name: str, uuid: str, dedicated_up_to: int = 1
) -> Holding:
    """What a running VM without a claim holds, from the affinity of each of its vCPUs.

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


def from_json(said: object) -> Holding:
    """Read back what ``Holding.to_json`` wrote, or a claim's own JSON (a claim has no ``memory``).

    Raises ``PlanError`` for anything else.
    """
    if not isinstance(said, dict):
        raise PlanError("claims", type(said).__name__, "an object for each VM")
    if "settings" in said:
        return of_claim(Claim.from_json(said))
    if said.get("format") != FORMAT:
        raise PlanError("claims", f"format {said.get('format')!r}", f"format {FORMAT}")
    try:
        return Holding(
            name=str(said["name"]),
            uuid=str(said["uuid"]),
            exclusive=CpuSet.parse(said["exclusive"]),
            dedicated=CpuSet.parse(said["dedicated"]),
            idle=CpuSet.parse(said["idle"]),
            keeps_siblings=said["keeps_siblings"] is True,
            floating=tuple(
                (CpuSet.parse(one["cpus"]), int(one["vcpus"])) for one in said["floating"]
            ),
            memory=tuple((int(one["node"]), int(one["kib"])) for one in said["memory"]),
            hugepages=tuple(
                (int(one["node"]), int(one["size_kib"]), int(one["count"]))
                for one in said["hugepages"]
            ),
            ways=tuple((int(one["cache"]), int(one["mask"], 16)) for one in said["ways"]),
            pci=tuple(PciAddress.parse(one) for one in said["pci"]),
        )
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise PlanError("claims", f"{type(error).__name__}: {error}", "a holding") from error
