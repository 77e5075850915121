"""A domain's own words about its place: its pins, and what they tell of what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from attrs import evolve

from kvmhooks.errors import PlanError
from kvmhooks.host.model import Host, Kind, Node
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import second_identity_of
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.cpu import (
    KNOWN_PAGES,
    cpu_set,
    pages_by_cell,
    vcpu_pins,
    vcpus_of,
)
from kvmhooks.libvirt.importing.passthrough import address_of
from kvmhooks.machine.domain_reading import number
from kvmhooks.machine.target import Target
from kvmhooks.placement import Plan, plan
from kvmhooks.placement.own_place import OwnPlace, place_or_stay
from kvmhooks.placement.plan import identity_of
from kvmhooks.policy import NAMESPACE
from kvmhooks.spec.model import Pci, VmSpec
from kvmhooks.values import ByteSize, CpuSet, PciAddress, union

_POLICY: Final = f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}isolation"
_THREADS: Final = f"metadata/{{{NAMESPACE}}}vm/{{{NAMESPACE}}}threads"


def is_written_by_kvmhooks(root: Element) -> bool:
    """Return whether a domain has everything that kvmhooks writes in any domain.

    That is the policy with both of its words, a topology, cells, and a pin for all but iothreads
    (``libvirt.xml``). Its ``vm.toml`` is silent about the same things as the domain.
    """
    policy = root.find(_POLICY)
    words = () if policy is None else [name for name in ("exclusive", "strict") if policy.get(name)]
    parts = ("cpu/topology", "cpu/numa/cell", "cputune/emulatorpin")
    return (
        len(words) == 2
        and all(root.find(path) is not None for path in parts)
        and vcpu_pins(root).keys() == set(range(vcpus_of(root)))
    )


class PlaceOf:
    """The place of a domain on a host: the one that it has, or a better one."""

    def __init__(
        self,
        root: Element,
        inventory: Inventory,
        *,
        keep_pins: bool,
        keep_nodes: bool,
        is_asked: bool = False,
    ) -> None:
        """Take the domain as it is; ``is_asked``: its owner asks whether it is better elsewhere.

        Then one that kvmhooks wrote may move as well, to CPUs of the kind that it has.
        """
        self.root = root
        self.inventory = inventory
        self.own = own_place(root, inventory.host)
        self._kind: Kind | None = None
        if is_asked and self.own is not None:
            self.own = evolve(self.own, is_bound=has_shares(root))
            if is_written_by_kvmhooks(root):
                self._kind = _kind_of(self.own, inventory.host)
        self._keep_pins = keep_pins
        self._keep_nodes = keep_nodes

    @property
    def pins(self) -> Mapping[int, CpuSet]:
        """The CPUs of each vCPU as the domain says; empty where it does not say all."""
        return {} if self.own is None else self.own.vcpus

    def plan(self, spec: VmSpec, target: Target) -> Plan:
        """Return the plan of its VM, where it is if that is as good. Raises ``PlanError``."""
        spec = with_own_words(spec, self.root, self.inventory.host)
        if self._kind is not None:
            spec = evolve(spec, cpu=evolve(spec.cpu, kind=self._kind))
        inventory = with_own_pages(self.inventory, spec, self.own)
        if self._keep_nodes:
            spec = self.on_its_nodes(spec)
        if self.own is None or self._keep_pins:
            return plan(spec, inventory, target=target)
        return place_or_stay(spec, self.own, inventory, target=target)

    def on_its_nodes(self, spec: VmSpec) -> VmSpec:
        """Return the spec for the nodes that the domain's memory is bound to, if any."""
        bound = union(nodes_of(self.root).values())
        if not bound or not self.inventory.host.nodes:
            return spec
        return evolve(spec, memory=evolve(spec.memory, nodes=bound))


def with_cells(spec: VmSpec, root: Element) -> VmSpec:
    """Return the spec with as many guest cells as the domain has: they stay.

    Raises ``PlanError`` for cells, and for pages of them, that a spec cannot say: a place that was
    found for others would be none of this VM.
    """
    cells = [
        cpu_set(cell, "cpus") if cell.get("cpus") else CpuSet()
        for cell in root.all("cpu/numa/cell")
    ]
    count = len(cells)
    sizes = set(pages_by_cell(root, max(count, 1)))
    if len(sizes) > 1 or not sizes <= KNOWN_PAGES | {0}:
        told = ", ".join(str(ByteSize(size)) if size else "4KiB" for size in sorted(sizes))
        raise PlanError("memoryBacking/hugepages", f"pages of {told}", "2MiB or 1GiB in all cells")
    if not cells or spec.memory.cell:
        return spec
    each = spec.cpu.vcpus // count
    for at, vcpus in enumerate(cells):
        if vcpus != CpuSet(range(at * each, (at + 1) * each)):
            found = f"vCPUs {vcpus or 'none'} in cell {at}"
            raise PlanError("cpu/numa", found, f"{each} in each cell, in order")
    return evolve(spec, memory=evolve(spec.memory, cells=count))


def own_place(root: Element, host: Host) -> OwnPlace | None:
    """Return the place that a domain says; None where not each vCPU has one.

    Raises ``SpecError`` for a set that is none.
    """
    pins, vcpu = vcpu_pins(root), root.find("vcpu")
    count = vcpus_of(root)
    if vcpu is not None and vcpu.get("placement") != "auto" and vcpu.get("cpuset"):
        pins = {**dict.fromkeys(range(count), cpu_set(vcpu, "cpuset")), **pins}
    if pins.keys() != set(range(count)):
        return None
    cells = [
        cpu_set(cell, "cpus") if cell.get("cpus") else CpuSet()
        for cell in root.all("cpu/numa/cell")
    ] or [CpuSet(range(count))]
    emulator = root.find("cputune/emulatorpin")
    return OwnPlace(
        vcpus=pins,
        cells=tuple(cells),
        nodes=_nodes(root, len(cells), host),
        emulator=CpuSet() if emulator is None else cpu_set(emulator, "cpuset"),
        iothreads={
            number(pin.get("iothread") or "", f"{pin.path}@iothread"): cpu_set(pin, "cpuset")
            for pin in root.all("cputune/iothreadpin")
        },
        is_bound=is_written_by_kvmhooks(root) or has_shares(root),
    )


def has_shares(root: Element) -> bool:
    """Return whether vCPUs have shares of caches or of bandwidth, which are of their L3."""
    return any(root.find(f"cputune/{tag}") is not None for tag in ("cachetune", "memorytune"))


def _kind_of(own: OwnPlace, host: Host) -> Kind | None:
    """Return the kind of a VM's cores; None where there is one only, or it has several."""
    here = union(own.vcpus.values()) & host.online
    kinds = {host.cpu(cpu).kind for cpu in here}
    return kinds.pop() if len(kinds) == 1 else None


def _nodes(root: Element, cells: int, host: Host) -> tuple[CpuSet | None, ...]:
    """Return the host nodes that the memory of each cell is bound to."""
    if not host.nodes:
        return (None,) * cells
    bound = nodes_of(root)
    whole = bound.get(None)
    whole = whole if whole is not None and len(whole) == 1 else None
    return tuple(bound.get(str(cell), whole) for cell in range(cells))


def nodes_of(root: Element) -> dict[str | None, CpuSet]:
    """Return the host nodes that the memory of each cell is bound to; under None the whole's."""
    bound = {each.get("cellid"): cpu_set(each, "nodeset") for each in root.all("numatune/memnode")}
    memory = root.find("numatune/memory")
    if memory is not None and memory.get("placement") != "auto" and memory.get("nodeset"):
        return {None: cpu_set(memory, "nodeset"), **bound}
    return bound


def with_own_words(spec: VmSpec, root: Element, host: Host) -> VmSpec:
    """Return the spec with what a domain's pins and threads tell, and without lost devices.

    ``libvirt.importing`` knows no host. A device that is not here draws the VM to no node.
    """
    cpu = spec.cpu
    if cpu.placement == "shared":
        own = _mixed(root, cpu.threads or 1)
        if own:
            cpu = evolve(cpu, placement="mixed", dedicated=own)
    if cpu.placement != "shared" and _is_realtime(root):
        cpu = evolve(cpu, realtime=True)
    here = {device.address for device in host.pci or ()}
    known = {device.address for device in spec.pci}
    more = (Pci(address=address) for address in dict.fromkeys(addresses_of(root)))
    pci = (*spec.pci, *(device for device in more if device.address not in known))
    return evolve(spec, cpu=cpu, pci=tuple(device for device in pci if device.address in here))


def addresses_of(root: Element) -> Iterator[PciAddress]:
    """Yield the functions of the host that a domain has for an interface or a disk.

    https://libvirt.org/formatdomain.html: ``<interface type='hostdev'>``, ``<disk type='nvme'>``.
    """
    for tag, kind in (("interface", "hostdev"), ("disk", "nvme")):
        for element in root.all(f"devices/{tag}"):
            source = element.find("source/address")
            if element.get("type") == kind and source is not None:
                address = address_of(source)
                if address is not None:
                    yield address


def _mixed(root: Element, threads: int) -> CpuSet:
    """Return the vCPUs that have a CPU each while others float; empty where all are alike."""
    pins = vcpu_pins(root)
    emulator = root.find("cputune/emulatorpin")
    if emulator is None or pins.keys() != set(range(vcpus_of(root))):
        return CpuSet()
    shared = cpu_set(emulator, "cpuset")
    shared |= union(cpus for cpus in pins.values() if len(cpus) != 1)
    own = {vcpu: cpus for vcpu, cpus in pins.items() if len(cpus) == 1}
    cpus = union(own.values())
    is_mixed = 0 < len(own) < len(pins) and len(cpus) == len(own) and cpus.isdisjoint(shared)
    vcpus = CpuSet(own)
    is_whole = len(vcpus) == threads * len({vcpu // threads for vcpu in vcpus})
    return vcpus if is_mixed and is_whole else CpuSet()


def _is_realtime(root: Element) -> bool:
    """Return whether vCPUs run with a real-time class, by libvirt's word or kvmhooks'."""
    threads = root.find(_THREADS)
    by_policy = threads is not None and (threads.get("vcpus") or "").startswith(("fifo", "rr"))
    classes = {element.get("scheduler") for element in root.all("cputune/vcpusched")}
    return by_policy or not classes.isdisjoint({"fifo", "rr"})


def with_own_pages(inventory: Inventory, spec: VmSpec, own: OwnPlace | None) -> Inventory:
    """Return the inventory on which a VM's own huge pages are free, if it runs and has mapped them.

    A VM that was promised some and has not mapped them yet is among the holdings with them.
    """
    host, pages = inventory.host, spec.memory.hugepages
    identity = identity_of(spec)
    known = {identity, second_identity_of(identity)}
    mine = [holding for holding in inventory.holdings if holding.uuid in known]
    if not pages or pages == "auto" or own is None or not mine or not host.nodes:
        return inventory
    if any(holding.hugepages for holding in mine):
        return inventory
    share = spec.memory.size // len(own.cells) // pages
    given = [cell.size // pages for cell in spec.memory.cell] or [share] * len(own.cells)
    mapped: dict[int, int] = {}
    for vcpus, bound, count in zip(own.cells, own.nodes, given, strict=True):
        cpus = union(own.vcpus[vcpu] for vcpu in vcpus)
        nodes = bound or CpuSet(
            node.id for node in host.nodes if cpus and cpus <= (node.cpus or CpuSet())
        )
        if len(nodes) != 1:
            return inventory
        mapped[nodes.first()] = mapped.get(nodes.first(), 0) + count
    freed = tuple(_with_free(node, pages.in_kib, mapped.get(node.id, 0)) for node in host.nodes)
    return evolve(inventory, host=evolve(host, nodes=freed))


def _with_free(node: Node, size_kib: int, count: int) -> Node:
    """Return a node with more free pages of a size: not more than there are."""
    if not count:
        return node
    pools = tuple(
        evolve(pool, free=min((pool.free or 0) + count, pool.total or 0))
        if pool.size_kib == size_kib
        else pool
        for pool in node.hugepages or ()
    )
    return evolve(node, hugepages=pools)
