"""The resources of a host that other VMs hold, as far as a plan must know them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from attrs import evolve, frozen

from kvmhooks.errors import PlanError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.mdevs import MdevDemand
from kvmhooks.values import CpuSet, PciAddress

Item = TypeVar("Item")

FORMAT: Final = 1
"""The version of the JSON form; keys are only added to it."""

SECOND: Final = "~"
"""The name, within a VM's UUID, of a second QEMU of it; no VM's name has it."""

_MOST: Final = 1 << 53
"""No number of a holding is larger: JSON's readers agree up to here (RFC 8259, 6)."""


def second_identity_of(identity: str) -> str:
    """Return the UUID under which a second QEMU of a VM holds what it has.

    It is empty for what is no UUID, of which there is no second.
    """
    try:
        return str(uuid.uuid5(uuid.UUID(identity), SECOND))
    except ValueError:
        return ""


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
    helpers: CpuSet = CpuSet()
    """CPUs of QEMU's other threads of a VM with dedicated vCPUs, which the host keeps for it."""
    floating: tuple[tuple[CpuSet, int], ...] = ()
    """(CPUs, vCPUs): so many vCPUs float over these CPUs. They give way to dedicated ones."""
    memory: tuple[tuple[int, int], ...] = ()
    """(node, KiB): ordinary memory that it has there or may come to have."""
    hugepages: tuple[tuple[int, int, int], ...] = ()
    """(node, page size in KiB, count): huge pages that it was promised and has not mapped, so that
    the kernel still counts them as free. Node -1 is any node."""
    ways: tuple[tuple[int, int], ...] = ()
    """(L3 cache id, mask): its own ways."""
    bandwidth: tuple[tuple[int, int], ...] = ()
    """(L3 cache id, percent): its share of the memory bandwidth there."""
    pci: tuple[PciAddress, ...] = ()
    """The devices that it has."""
    mdevs: tuple[str, ...] = ()
    """The UUIDs of its mediated devices."""

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
            "helpers": str(self.helpers),
            "floating": [{"cpus": str(cpus), "vcpus": count} for cpus, count in self.floating],
            "memory": [{"node": node, "kib": kib} for node, kib in self.memory],
            "hugepages": [
                {"node": node, "size_kib": size_kib, "count": count}
                for node, size_kib, count in self.hugepages
            ],
            "ways": [{"cache": cache, "mask": f"{mask:x}"} for cache, mask in self.ways],
            "bandwidth": [
                {"cache": cache, "percent": percent} for cache, percent in self.bandwidth
            ],
            "pci": [str(address) for address in self.pci],
            "mdevs": list(self.mdevs),
        }


def merged(holdings: Iterable[Holding]) -> tuple[Holding, ...]:
    """Return each VM once, in the order of the first of each: a claim and a domain are one VM.

    The first has the say on the CPUs that are its alone and on its huge pages; what only a later
    one knows is added.
    """
    found: dict[str, Holding] = {}
    for holding in holdings:
        known = found.get(holding.uuid)
        found[holding.uuid] = holding if known is None else _both(known, holding)
    return tuple(found.values())


def _both(known: Holding, more: Holding) -> Holding:
    """Return one VM of which two places tell."""
    shared = known.exclusive | known.dedicated
    return evolve(
        known,
        dedicated=known.dedicated | ((more.dedicated | more.exclusive) - known.exclusive),
        idle=known.idle | (more.idle - shared),
        helpers=known.helpers or more.helpers,
        floating=known.floating or more.floating,
        memory=known.memory or more.memory,
        hugepages=known.hugepages,
        ways=known.ways or more.ways,
        bandwidth=known.bandwidth or more.bandwidth,
        pci=tuple(dict.fromkeys((*known.pci, *more.pci))),
        mdevs=tuple(dict.fromkeys((*known.mdevs, *more.mdevs))),
    )


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
        mdevs=claim.asks_of(MdevDemand.KIND),
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
    """Read back what ``Holding.to_json`` wrote, or a claim's JSON.

    A claim says nothing of ordinary memory and cache ways but in what ``kvmhooks claim`` prints
    beside it. Raises ``PlanError`` for anything else, ``IsolationError`` for a wrong claim.
    """
    if not isinstance(document, dict):
        raise PlanError("claims", type(document).__name__, "an object for each VM")
    try:
        if "settings" in document:
            held = of_claim(Claim.from_file(document))
            return evolve(held, **_amounts(document, is_whole=False))
        if document.get("format") != FORMAT:
            raise PlanError("claims", f"format {document.get('format')!r}", f"format {FORMAT}")
        identity = str(document["uuid"])
        if str(uuid.UUID(identity)) != identity:
            raise PlanError("claims: uuid", repr(identity)[:60], "a lower-case UUID")
        return Holding(
            name=str(document["name"]),
            uuid=identity,
            exclusive=CpuSet.parse(document["exclusive"]),
            dedicated=CpuSet.parse(document["dedicated"]),
            idle=CpuSet.parse(document["idle"]),
            keeps_siblings=document["keeps_siblings"] is True,
            helpers=CpuSet.parse(document.get("helpers", "")),
            floating=tuple(
                (CpuSet.parse(share["cpus"]), _count(share["vcpus"]))
                for share in document["floating"]
            ),
            hugepages=tuple(
                (_node(pages["node"]), _count(pages["size_kib"], 1), _count(pages["count"]))
                for pages in document["hugepages"]
            ),
            pci=tuple(PciAddress.parse(address) for address in document["pci"]),
            mdevs=tuple(str(mdev) for mdev in document.get("mdevs", ())),
            **_amounts(document, is_whole=True),
        )
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise PlanError("claims", f"{type(error).__name__}: {error}", "a holding") from error


def _amounts(document: dict[str, Any], *, is_whole: bool) -> dict[str, Any]:
    """Return what a document says of memory, cache ways and bandwidth.

    The first two have to be there where it ``is_whole``. Raises ``LookupError``, ``TypeError`` or
    ``ValueError``.
    """

    def rows(key: str, row: Callable[[Any], Item], *, is_needed: bool) -> tuple[Item, ...]:
        items = document[key] if is_needed else document.get(key, ())
        return tuple(row(item) for item in items)

    return {
        "memory": rows(
            "memory",
            lambda share: (_node(share["node"]), _count(share["kib"])),
            is_needed=is_whole,
        ),
        "ways": rows(
            "ways",
            lambda ways: (_count(ways["cache"]), _count(int(ways["mask"], 16))),
            is_needed=is_whole,
        ),
        "bandwidth": rows(
            "bandwidth",
            lambda share: (_count(share["cache"]), _count(share["percent"])),
            is_needed=False,
        ),
    }


def _node(value: object) -> int:
    """Return the number of a node, or that of any. Raises ``ValueError``."""
    return ANY_NODE if value == ANY_NODE and type(value) is int else _count(value)


def _count(value: object, least: int = 0) -> int:
    """Return a number of things. Raises ``ValueError`` for one that is none."""
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"found {value!r:.40}, expected a whole number of at least {least}")
    return value
