"""The resources of a host that other VMs hold, as far as a plan must know them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve, frozen

from kvmhooks.errors import PlanError
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.hugepage_demand import ANY_NODE
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.mdevs import MdevDemand
from kvmhooks.values import CpuSet, PciAddress, union

if TYPE_CHECKING:
    from kvmhooks.host.model import Host

Item = TypeVar("Item")

FORMAT: Final = 1
"""The version of the JSON form; keys are only added to it."""

KEYS: Final = ("sev", "sev_es", "tdx")
"""The kinds of keys for encrypted guests, by the kernel's names (kernel/cgroup/misc.c): ASIDs of
SEV, those of SEV-ES and SEV-SNP, HKIDs of TDX."""

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
    """All siblings of its CPUs are such, though ``idle`` does not tell them."""
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
    key: str = ""
    """The kind of key that its encrypted memory has, one of ``KEYS``; empty if it is plain."""
    has_key: bool = False
    """It has the key already, so that the kernel counts it as used."""

    def alone(self, host: Host) -> CpuSet:
        """Return the CPUs of a host on which no other VM's vCPU may run."""
        own = self.exclusive | self.dedicated
        kept = own & host.online if self.keeps_siblings else CpuSet()
        return union((own, self.idle, *map(host.core_of, kept)))

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
            "key": self.key,
            "has_key": self.has_key,
        }


def merged(holdings: Iterable[Holding]) -> tuple[Holding, ...]:
    """Return each VM once, in the order of the first of each: a claim and a domain are one VM.

    The first has the say on the CPUs that are its alone and on its huge pages; what only a later
    one knows is added. VMs without a UUID are told apart by their names.
    """
    found: dict[tuple[str, str], Holding] = {}
    for holding in holdings:
        key = (holding.uuid, "" if holding.uuid else holding.name)
        known = found.get(key)
        found[key] = holding if known is None else _both(known, holding)
    return tuple(found.values())


def _both(known: Holding, more: Holding) -> Holding:
    """Return one VM of which two places tell."""
    shared = known.exclusive | known.dedicated
    return evolve(
        known,
        keeps_siblings=known.keeps_siblings or more.keeps_siblings,
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
        key=known.key or more.key,
        has_key=known.has_key or more.has_key,
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

    A claim says only what the host is changed for; all that a VM holds besides stands in what
    ``kvmhooks claim`` prints beside it. Raises ``PlanError`` for anything else,
    ``IsolationError`` for a wrong claim.
    """
    if not isinstance(document, dict):
        raise PlanError("claims", type(document).__name__, "an object for each VM")
    try:
        if "settings" in document:
            return _with_more(of_claim(Claim.from_file(document)), document)
        if document.get("format") != FORMAT:
            raise PlanError("claims", f"format {document.get('format')!r}", f"format {FORMAT}")
        identity = str(document["uuid"])
        if str(uuid.UUID(identity)) != identity:
            raise PlanError("claims: uuid", repr(identity)[:60], "a lower-case UUID")
        known: dict[str, Any] = {
            key: _rows(document.get(key, ()), READERS[key]) for key in ADDED_LATER
        }
        known |= {key: _rows(document[key], READERS[key]) for key in READERS.keys() - ADDED_LATER}
        return Holding(
            name=str(document["name"]),
            uuid=identity,
            exclusive=CpuSet.parse(document["exclusive"]),
            dedicated=CpuSet.parse(document["dedicated"]),
            idle=CpuSet.parse(document["idle"]),
            keeps_siblings=document["keeps_siblings"] is True,
            helpers=CpuSet.parse(document.get("helpers", "")),
            hugepages=_rows(document["hugepages"], _pages),
            key=_key(document.get("key", "")),
            has_key=document.get("has_key") is True,
            **known,
        )
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise PlanError("claims", f"{type(error).__name__}: {error}", "a holding") from error


def _with_more(claimed: Holding, document: dict[str, Any]) -> Holding:
    """Return what a claim holds, with what its document says besides. Raises as ``_rows``."""
    told: dict[str, Any] = {
        key: _rows(document.get(key, ()), read) for key, read in READERS.items()
    }
    for key in ("pci", "mdevs"):
        told[key] = tuple(dict.fromkeys((*getattr(claimed, key), *told[key])))
    return evolve(
        claimed,
        dedicated=CpuSet.parse(document.get("dedicated", "")) - claimed.exclusive,
        idle=CpuSet.parse(document.get("idle", "")),
        helpers=CpuSet.parse(document.get("helpers", "")),
        keeps_siblings=claimed.keeps_siblings or document.get("keeps_siblings") is True,
        hugepages=claimed.hugepages or _rows(document.get("hugepages", ()), _pages),
        key=_key(document.get("key", "")),
        has_key=document.get("has_key") is True,
        **told,
    )


def _rows(items: Any, row: Callable[[Any], Item]) -> tuple[Item, ...]:
    """Return a value of each item. Raises ``LookupError``, ``TypeError`` or ``ValueError``."""
    return tuple(row(item) for item in items)


def _pages(pages: Any) -> tuple[int, int, int]:
    return _node(pages["node"]), _count(pages["size_kib"], 1), _count(pages["count"])


READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "floating": lambda share: (CpuSet.parse(share["cpus"]), _count(share["vcpus"])),
    "memory": lambda share: (_node(share["node"]), _count(share["kib"])),
    "ways": lambda ways: (_count(ways["cache"]), _count(int(ways["mask"], 16))),
    "bandwidth": lambda share: (_count(share["cache"]), _count(share["percent"])),
    "pci": PciAddress.parse,
    "mdevs": str,
}
"""The reader of an item of each list that a holding has and a claim may have beside it."""

ADDED_LATER: Final = frozenset({"bandwidth", "mdevs"})
"""The lists that a holding of the first version has not."""


def _key(value: object) -> str:
    """Return a kind of key, or none. Raises ``ValueError``."""
    if value not in {*KEYS, ""} or not isinstance(value, str):
        raise ValueError(f"key: found {value!r:.40}, expected one of {', '.join(KEYS)}")
    return value


def _node(value: object) -> int:
    """Return the number of a node, or that of any. Raises ``ValueError``."""
    return ANY_NODE if value == ANY_NODE and type(value) is int else _count(value)


def _count(value: object, least: int = 0) -> int:
    """Return a number of things. Raises ``ValueError`` for one that is none."""
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"found {value!r:.40}, expected a whole number of at least {least}")
    return value
