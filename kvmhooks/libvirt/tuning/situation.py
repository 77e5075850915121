"""The grounds on which a domain is tuned: itself, its spec, the host and the plan for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field, frozen

from kvmhooks.errors import PlanError
from kvmhooks.libvirt.importing.cpu import cpu_set, vcpu_pins, vcpus_of
from kvmhooks.values import CpuSet, union

if TYPE_CHECKING:
    from kvmhooks.host.model import Host
    from kvmhooks.libvirt.edit.editor import Editor, Target
    from kvmhooks.libvirt.edit.text import Element
    from kvmhooks.placement import Plan
    from kvmhooks.spec.model import VmSpec

_WINDOWS: Final = "://microsoft.com/"
_LIBOSINFO: Final = "http://libosinfo.org/xmlns/libvirt/domain/1.0"


@frozen(kw_only=True)
class Renderings:
    """The plans of a VM of which a profile's words are the difference."""

    wished: Plan
    plain: Plan
    left_out: tuple[str, ...]
    """The keys that the profile gives, and that the VM's place does not bear."""


class PlanBoth(Protocol):
    """A function that makes both; with ``stays`` for a VM whose place stays as it is."""

    def __call__(self, *, stays: bool) -> Renderings:
        """Return them. Raises ``PlanError``."""


@define(eq=False, slots=False)
class Situation:
    """One domain on one host."""

    editor: Editor
    spec: VmSpec
    host: Host
    make_plan: Callable[[], Plan] = field(repr=False)
    renderings: PlanBoth | None = field(default=None, repr=False)
    """Plans the VM, all its devices included, with the profile that was asked for and without."""
    keep_pins: bool = False
    is_pinning: bool = True
    """Pins that there are not yet are added."""
    manager: str = ""
    """The program that chooses the domain's place, which therefore stays; empty for none."""
    is_own: bool = False
    """kvmhooks wrote the domain: what it is silent about, its ``vm.toml`` leaves as it is."""
    advice: list[str] = field(factory=list)
    """Improvements that are left to its owner, each as a sentence."""

    @property
    def root(self) -> Element:
        """The ``<domain>``."""
        return self.editor.source.root

    @cached_property
    def plan(self) -> Plan:
        """The plan; it is made when something of it is needed. Raises ``PlanError``."""
        return self.make_plan()

    @cached_property
    def placed(self) -> Plan | None:
        """The plan, or None when the VM does not fit this host: its owner is told why, once."""
        try:
            return self.plan
        except PlanError as error:
            self.advice.append(f"not placed on this host, and its pins stay: {error}")
            return None

    @property
    def stays(self) -> bool:
        """The place is not changed: another program chooses it, or there is none here."""
        return bool(self.manager) or self.placed is None

    @property
    def is_kvm(self) -> bool:
        """The domain runs under KVM."""
        return self.root.get("type") == "kvm"

    @cached_property
    def vcpus(self) -> int:
        """The number of vCPUs that there are at most."""
        return vcpus_of(self.root)

    @cached_property
    def is_windows(self) -> bool:
        """The guest is Windows: libosinfo's word for it, or Hyper-V's interfaces on."""
        for element in self.root.all(f"metadata/{{{_LIBOSINFO}}}libosinfo/{{{_LIBOSINFO}}}os"):
            return _WINDOWS in element.get("id", "")
        return self.root.find("features/hyperv") is not None

    @cached_property
    def kept_pins(self) -> dict[int, CpuSet]:
        """The pins of vCPUs that stay as they are: those that are there."""
        if not (self.keep_pins or self.stays):
            return {}
        pins = vcpu_pins(self.root)
        vcpu = self.root.find("vcpu")
        if not pins and vcpu is not None and vcpu.get("cpuset"):
            return dict.fromkeys(range(self.vcpus), cpu_set(vcpu, "cpuset"))
        return pins

    @property
    def pins(self) -> dict[int, CpuSet]:
        """The CPUs of each vCPU that is or will be pinned."""
        if self.kept_pins or self.stays:
            return self.kept_pins
        return {pin.vcpu: pin.cpus for pin in self.plan.vcpus}

    @property
    def is_dedicated(self) -> bool:
        """Each vCPU will have a CPU of its own."""
        if not self.kept_pins and not self.stays and self.plan.spec.cpu.placement == "shared":
            return False
        pins = self.pins
        singles = [cpus for cpus in pins.values() if len(cpus) == 1]
        return len(singles) == self.vcpus == len(union(singles))

    def nodes_of(self, cpus: CpuSet) -> CpuSet | None:
        """Return the host nodes of some CPUs; None where that is not known."""
        nodes = {self.host.cpu(cpu).node for cpu in cpus & self.host.online}
        known = [node for node in nodes if node is not None]
        return CpuSet(known) if known and len(known) == len(nodes) else None

    def devices(self, tag: str) -> Iterator[Element]:
        """Return the devices of one kind."""
        return self.root.all(f"devices/{tag}")

    def child(self, path: str, why: str) -> Target:
        """Return the element at ``path``, made where it is not."""
        at: Target = self.root
        for tag in path.split("/"):
            at = self.editor.child(at, tag, why)
        return at
