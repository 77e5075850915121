"""libvirt and an administrator on the model of a host: VMs that start, stop, crash, and hooks.

``Killed`` is how a hook dies: no code of its own has any effect after it.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING

from kvmhooks.cli import status, status_text
from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.hook import entry, fastpath
from kvmhooks.isolate.record.comparison import DRIFTED, Comparison
from kvmhooks.isolate.record.state import State
from kvmhooks.isolate.registry.drift import compare
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.scheduling import COOKIE, NEW
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import WORKQUEUES, Irq, Kernel, Record, drop_in, nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvmhooks.isolate.record.report import Report

METADATA = '<metadata><kvmhooks:vm xmlns:kvmhooks="urn:kvmhooks:1">{}</kvmhooks:vm></metadata>'
PAGES = "sys/devices/system/node/node0/hugepages/hugepages-2048kB"
"""The pool of ``PagedVm``."""

ISOLATION = '<kvmhooks:isolation exclusive="yes"/>'
BINDS = f'{ISOLATION}<kvmhooks:devices managed="yes"/>'


class Killed(BaseException):
    """The hook was killed."""


def killed_after(count: int) -> Callable[[str], None]:
    """A step of a kernel at which whoever writes dies, once it was taken so often."""
    left = iter(range(count))

    def step(_what: str) -> None:
        if next(left, None) is None:
            raise Killed

    return step


class Vm:
    """A guest as libvirt sees it."""

    def __init__(self, name: str, cpus: CpuSet, emulator: CpuSet, policy: str = ISOLATION) -> None:
        self.name = name
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        self.cpus = cpus
        self.emulator = emulator
        self.policy = policy
        self.devices = ""
        """The ``<devices>`` of its XML."""
        self.pid = 0
        self.serial = 0

    @property
    def key(self) -> str:
        """Its claim's key."""
        return f"qemu-{self.uuid}"

    @property
    def scope(self) -> str:
        """Its group."""
        return f"machine.slice/machine-qemu\\x2d{self.serial}\\x2d{self.name}.scope"

    @property
    def xml(self) -> bytes:
        """The domain that libvirt hands to the hook."""
        pins = "".join(f"<vcpupin vcpu='{at}' cpuset='{cpu}'/>" for at, cpu in enumerate(self.cpus))
        metadata = METADATA.format(self.policy) if self.policy else ""
        tune = f"<cputune>{pins}<emulatorpin cpuset='{self.emulator}'/></cputune>"
        return (
            f"<domain type='kvm'><name>{self.name}</name><uuid>{self.uuid}</uuid>{metadata}"
            f"<vcpu>{len(self.cpus)}</vcpu>{tune}{self.devices}</domain>"
        ).encode()


class PagedVm(Vm):
    """A guest on ``pages`` huge pages of 2 MiB of node 0."""

    def __init__(self, name: str, cpus: CpuSet, emulator: CpuSet, *, pages: int) -> None:
        super().__init__(name, cpus, emulator)
        self.pages = pages

    @property
    def xml(self) -> bytes:
        pages = (
            f"<memory unit='MiB'>{2 * self.pages}</memory><memoryBacking><hugepages>"
            "<page size='2' unit='M'/></hugepages></memoryBacking>"
            "<numatune><memory nodeset='0'/></numatune></domain>"
        )
        return super().xml.replace(b"</domain>", pages.encode())


class GivenVm(Vm):
    """A guest with PCI devices that libvirt leaves to us to bind."""

    def __init__(
        self, name: str, cpus: CpuSet, emulator: CpuSet, devices: Iterable[str], policy: str = BINDS
    ) -> None:
        super().__init__(name, cpus, emulator, policy)
        self.devices = f"<devices>{''.join(map(hostdev, devices))}</devices>"


def hostdev(address: str, managed: str = "no") -> str:
    """A device of the host in a domain's XML."""
    domain, bus, rest = address.split(":")
    slot, _, function = rest.partition(".")
    return (
        f"<hostdev mode='subsystem' type='pci' managed='{managed}'><source>"
        f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
        "</source></hostdev>"
    )


class World:
    """A host with libvirtd; the hook runs as libvirt would run it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.serial = 0
        self.vms: dict[str, Vm] = {}
        self.gives_cookies = False
        """qemu.conf has ``sched_core = "emulator"``."""

    def call(self, vm: Vm, operation: str, sub_operation: str) -> Report | None:
        """Run the hook. Raises what it refuses with."""
        name = f"{operation} {sub_operation}"
        is_anybodys = name in fastpath.ANYBODYS and self.kernel.record is not None
        if name not in fastpath.OURS or not (vm.policy or is_anybodys):
            return None
        return entry.carry_out(self.registry, operation, vm.xml)

    def start(self, vm: Vm) -> None:
        """Start a VM; when a hook fails or dies, libvirt gives up and calls `release`."""
        self.serial += 1
        vm.serial = self.serial
        try:
            self.call(vm, "prepare", "begin")
            self.call(vm, "start", "begin")
            self._launch(vm)
            self.call(vm, "started", "begin")
        except BaseException:
            self._end(vm)
            self._call_dying(vm)
            raise
        self.vms[vm.name] = vm

    def stop(self, vm: Vm) -> None:
        """Shut a VM down, or notice that it has crashed."""
        del self.vms[vm.name]
        self._end(vm)
        self.call(vm, "stopped", "end")
        self.call(vm, "release", "end")

    def crash(self, vm: Vm) -> None:
        """QEMU dies and libvirtd does not see it (it is down, or busy)."""
        del self.vms[vm.name]
        self._end(vm)

    def restart_libvirtd(self) -> None:
        """A new daemon finds the VMs again."""
        old = self.kernel.tasks[self.kernel.libvirtd]
        group = old.group.path
        self.kernel.end(self.kernel.libvirtd)
        self.kernel.libvirtd = self.kernel.spawn("libvirtd", group=group)
        for vm in self.vms.values():
            self.call(vm, "reconnect", "begin")

    def reconcile(self) -> Report:
        """``kvmhooks reconcile``."""
        return self.registry.reconcile()

    @property
    def registry(self) -> Registry:
        """The registry that a hook makes anew for each call; its helper is the model's."""
        return Registry(self.kernel, Record(self.kernel), helper=["kvmhooks"])

    @property
    def state(self) -> State:
        """The state on record."""
        return Registry(self.kernel, Record(self.kernel)).look()

    def compared(self) -> dict[str, Comparison]:
        """All that is on record beside the host, by its key."""
        return {row.key: row for row in compare(self.registry, self.state)}

    def drifted(self) -> dict[str, Comparison]:
        """All of it that somebody else has changed."""
        return {key: row for key, row in self.compared().items() if row.state == DRIFTED}

    def told(self) -> str:
        """``kvmhooks status``, for a person."""
        found = [*self.compared().values()]
        return status_text.told(status.held_things(self.registry, self.state, found), found)

    def _launch(self, vm: Vm) -> None:
        """QEMU starts, and libvirt makes its groups, CPU sets and pins; EINVAL would be ours."""
        kernel = self.kernel
        kernel.groups.make(vm.scope)
        vm.pid = kernel.spawn("qemu-kvm", group=vm.scope, parent=kernel.libvirtd)
        kernel.files[f"run/libvirt/qemu/{vm.name}.pid"] = str(vm.pid)
        inner = vm.scope if kernel.flavour == "legacy" else f"{vm.scope}/libvirt"
        group = kernel.groups.make(inner)
        while group is not None and kernel.flavour != "legacy":
            group.has_controller = True
            group = group.parent  # type: ignore[assignment]
        self._place(vm, vm.pid, f"{inner}/emulator", vm.emulator)
        for at, cpu in enumerate(vm.cpus):
            self.plug(vm, at, cpu)
        if self.gives_cookies:
            kernel.set_scheduling(vm.pid, COOKIE, NEW)

    def plug(self, vm: Vm, at: int, cpu: int) -> int:
        """QEMU starts the thread of a vCPU, and libvirt places it; its thread id."""
        inner = vm.scope if self.kernel.flavour == "legacy" else f"{vm.scope}/libvirt"
        tid = self.kernel.spawn(f"CPU {at}/KVM", group=vm.scope, leader=vm.pid)
        self._place(vm, tid, f"{inner}/vcpu{at}", CpuSet({cpu}))
        return tid

    def _place(self, vm: Vm, tid: int, path: str, cpus: CpuSet) -> None:
        kernel = self.kernel
        group = kernel.groups.make(path)
        task = kernel.tasks[tid]
        task.group.tasks.discard(tid)
        task.group = group
        group.tasks.add(tid)
        kernel.put(f"{kernel.base}/{path}/cpuset.cpus", str(cpus))
        kernel.pin(tid, cpus)
        assert kernel.affinity(tid) <= cpus, f"{vm.name}: libvirt cannot pin to {cpus}"

    def _end(self, vm: Vm) -> None:
        kernel = self.kernel
        if vm.pid:
            kernel.end(vm.pid)
            vm.pid = 0
        kernel.files.pop(f"run/libvirt/qemu/{vm.name}.pid", None)
        kernel.files.pop(drop_in(vm.scope.rpartition("/")[2]), None)
        with contextlib.suppress(FileNotFoundError), kernel._tasks_follow():
            kernel.groups.remove(vm.scope)

    def _call_dying(self, vm: Vm) -> None:
        """Make libvirt's calls after a failed start; a hook that fails here changes nothing."""
        step, self.kernel.step = self.kernel.step, nothing
        try:
            self.call(vm, "stopped", "end")
            self.call(vm, "release", "end")
        except KvmhooksError:
            pass
        finally:
            self.kernel.step = step


def effective_state(kernel: Kernel) -> dict[str, str]:
    """Return what all and everyone may use: equal before and after, or something was left."""
    found = {"irq/default": str(kernel.default)}
    for number, irq in kernel.irqs.items():
        found[f"irq/{number}"] = str(irq.mask)
        found[f"irq/{number}/effective"] = str(irq.effective)
    for path, mask in kernel.masks.items():
        found[path] = str(mask)
    for tid, task in kernel.tasks.items():
        found[f"task/{tid}"] = str(task.mask)
    for group in kernel.groups.root.walk():
        if not group.path.startswith("machine"):
            found[f"effective/{group.path}"] = str(kernel.groups.effective(group))
    for address, (driver, override) in kernel.pci.state().items():
        found[f"pci/{address}"] = f"{driver}, override {override!r}"
        function = kernel.pci.functions[address]
        found[f"sriov/{address}"] = f"probes {function.probes}, {function.settings}"
    kept = {path: text for path, text in kernel.files.items() if not path.startswith("run/libvirt")}
    return found | kept


def requested_state(kernel: Kernel) -> dict[str, str]:
    """Return the contents of the groups' files; the possible mask is as good as none."""
    found = {}
    for group in kernel.groups.root.walk():
        cpus = "" if group.cpus == kernel.possible else str(group.cpus)
        if not group.path.startswith("machine.slice/"):
            found[group.path] = f"{cpus} {group.exclusive} {group.partition}"
    return found


def intruders(kernel: Kernel, world: World) -> Iterator[str]:
    """Yield all that may run on a live VM's own CPUs, but what the kernel insists on."""
    for vm in world.vms.values():
        if vm.policy:
            for what, cpus in _users(kernel, vm):
                if not cpus.isdisjoint(vm.cpus):
                    yield f"{what} on {cpus & vm.cpus} of {vm.name}"


def _users(kernel: Kernel, vm: Vm) -> Iterator[tuple[str, CpuSet]]:
    """Everything but the VM itself, and where it may run."""
    isolated = kernel.groups.isolated()
    for tid, task in sorted(kernel.tasks.items()):
        is_placed = task.flags & 0x0400_0000 or (kernel.keeps_user_cpus and task.name == "kthreadd")
        if vm.pid not in {tid, task.leader} and not is_placed:
            # none leaves the scheduling domain that it is in, whatever its mask
            # (``select_task_rq_fair()`` and ``find_lowest_rq()``, kernel/sched)
            yield f"{task.name} {tid}", task.mask - isolated if task.flags else task.mask
    for number, irq in kernel.irqs.items():
        if not _is_insisted(irq) and number % 13 != 12:
            yield f"interrupt {number}", irq.effective
    for path, mask in kernel.masks.items():  # a workqueue's own is cut to that of all
        whole = kernel.masks[WORKQUEUES] if path.startswith(WORKQUEUES[:-7]) else mask
        yield path, mask & whole or whole


def _is_insisted(irq: Irq) -> bool:
    return irq.is_managed or irq.is_pending
