"""kvm-launch on the model of a host: its QEMU, with threads that it moves to groups of its own.

The rules of moving are those of the kernel's ``cgroup_migrate_vet_dst()`` and
``cgroup_vet_subtree_control_enable()`` (kernel/cgroup/cgroup.c), as far as the cpuset controller is
concerned, and of cgroup-v1/cpusets.rst.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from kvm_launch.host.claimed_plan import plan_and_claim
from kvm_launch.host.lease import Lease
from kvmhooks.inventory.inventory import Inventory, inventory_on
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.dbus import BusError
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, ModelSystemd, Record, drop_in

if TYPE_CHECKING:
    from kvmhooks.host import Host
    from kvmhooks.placement import Plan
    from kvmhooks.spec import VmSpec
    from tests.isolate_model.cgroups import Group
    from tests.isolate_model.world import World


class LaunchKernel(Kernel):
    """A host whose groups can be made, left and removed."""

    def __init__(self, flavour: str, cpus: int, irqs: int, release: str = "") -> None:
        super().__init__(flavour, cpus, irqs, release)
        self.threaded: set[int] = set()
        """The groups whose type is ``threaded``, by identity."""
        self.mems: dict[int, str] = {}
        self.supervisor = self.spawn("kvm-launch", group=self.tasks[self.libvirtd].group.path)
        for group in self.groups.root.walk():
            self.mems[id(group)] = "0"

    def read(self, path: str) -> str:
        group, name = self._group_file(path)
        if group is not None and name == "cgroup.type":
            return "threaded" if id(group) in self.threaded else "domain"
        if group is not None and name == "cpuset.mems" and not self.groups.is_unified:
            return self.mems.get(id(group), "")
        if group is not None and name in {"cgroup.threads", "tasks"}:
            return "\n".join(map(str, sorted(group.tasks)))
        return super().read(path)

    def put(self, path: str, text: str) -> None:
        group, name = self._group_file(path)
        if group is None:
            super().put(path, text)
        elif name == "cgroup.procs":
            for tid in [tid for tid, task in self.tasks.items() if task.leader == int(text)]:
                self._move(tid, group)
        elif name in {"cgroup.threads", "tasks"}:
            self._move(int(text), group, is_thread=True)
        elif name == "cgroup.type":
            self.threaded.add(id(group))
        elif name == "cpuset.mems":
            self.mems[id(group)] = text
        else:
            self._check_control(group, name)
            super().put(path, text)

    def directories(self, path: str) -> list[str]:
        try:
            return super().directories(path)
        except FileNotFoundError:
            return []

    def make_directory(self, path: str) -> None:
        self.step(f"mkdir {path}")
        above, _, name = path.removeprefix(f"{self.base}/").rpartition("/")
        parent = self.groups.find(above)
        if name not in parent.children:
            child = self.groups.make(f"{above}/{name}".lstrip("/"))
            child.cpus = CpuSet()

    def remove_empty(self, path: str) -> None:
        super().remove_empty(path)
        if not path.startswith(f"{self.base}/"):
            return
        inner = path.removeprefix(f"{self.base}/")
        with suppress(FileNotFoundError):
            group = self.groups.find(inner)
            if group.children:
                return  # ENOTEMPTY, which the system does not mind
            if group.tasks:
                raise OSError(errno.EBUSY, "a task is in it", path)
            with self._tasks_follow():
                self.groups.remove(inner)

    def systemd(self, timeout: float = 5.0) -> ModelSystemd | None:
        del timeout
        return LaunchSystemd(self) if self.has_systemd else None

    def sleep(self, seconds: float) -> None:
        del seconds
        self.clock += 1

    def forget_scope(self, path: str) -> None:
        """Forget a scope as systemd does when its last process has ended."""
        self.files.pop(drop_in(path.rpartition("/")[2]), None)
        with suppress(FileNotFoundError), self._tasks_follow():
            self.groups.remove(path)

    def _group_file(self, path: str) -> tuple[Group | None, str]:
        if not path.startswith(f"{self.base}/"):
            return None, ""
        inner, _, name = path.removeprefix(f"{self.base}/").rpartition("/")
        return self.groups.find(inner), name

    def _move(self, tid: int, group: Group, *, is_thread: bool = False) -> None:
        task = self._task(tid)
        if self.groups.is_unified:
            if (id(group) in self.threaded) != is_thread:
                raise OSError(errno.EOPNOTSUPP, "a thread moves within its domain", group.path)
            if not is_thread and group.has_controller and group.parent is not None:
                raise OSError(errno.EBUSY, "its children have controllers", group.path)
        elif not group.cpus or not self.mems.get(id(group)):
            raise OSError(errno.ENOSPC, "no CPUs or no memory nodes", group.path)
        task.group.tasks.discard(tid)
        task.group = group
        group.tasks.add(tid)
        effective = self.groups.effective(group)
        user_cpus = task.user_cpus if self.keeps_user_cpus else None
        task.mask = (effective & user_cpus if user_cpus else effective) or effective

    def _check_control(self, group: Group, name: str) -> None:
        """Tasks beside children that have controllers: only in the domain of threads."""
        if name != "cgroup.subtree_control" or group.parent is None or not group.tasks:
            return
        if any(id(child) not in self.threaded for child in group.children.values()):
            raise OSError(errno.EBUSY, "it holds tasks", group.path)


class LaunchSystemd(ModelSystemd):
    """systemd that starts scopes, as well."""

    def start_scope(self, unit: str, pid: int, *, parent: str, about: str, before: str) -> None:
        kernel = self._kernel
        assert isinstance(kernel, LaunchKernel)
        assert about
        assert before.endswith(".service")
        kernel.step(f"systemd: start {unit}")
        path = f"{parent}/{unit}"
        with suppress(FileNotFoundError):
            kernel.groups.find(path)
            raise BusError(f"systemd: Unit {unit} already exists.")
        for above in ("", parent):
            kernel.put(
                f"{kernel.base}/{above}/cgroup.subtree_control".replace("//", "/"), "+cpuset"
            )
        kernel._move(pid, kernel.groups.make(path))


def looking(kernel: Kernel, host: Host) -> Callable[[], Inventory]:
    """A look at the host with the claims that live on the model by then."""
    return lambda: inventory_on(host, Registry(kernel, Record(kernel)).claims())


class LaunchedVm:
    """A VM whose supervisor is the model's ``kvm-launch``."""

    policy = "exclusive"

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = 0
        self.helper = 0
        """A program beside QEMU."""
        self.cpus = CpuSet()
        self.scope = ""

    def run(self, world: World, spec: VmSpec, host: Host) -> Lease:
        """Start it, as ``kvm_launch.life.supervise`` does; leave the context to stop it."""
        kernel = world.kernel
        assert isinstance(kernel, LaunchKernel)
        lease = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
        try:
            decided = plan_and_claim(lease, spec, looking(kernel, host))
            self.pid = kernel.spawn("child", parent=kernel.supervisor,
                                    group=kernel.tasks[kernel.supervisor].group.path)  # fmt: skip
            self.helper = kernel.spawn("child", parent=kernel.supervisor,
                                       group=kernel.tasks[self.pid].group.path)  # fmt: skip
            lease.adopt(self.pid)
            lease.join([self.helper])
            kernel.pin(self.helper, decided.emulator)
            self._become_qemu(kernel, decided, lease)
        except BaseException:
            self.end(kernel)
            lease.__exit__(None, None, None)
            raise
        self.cpus = decided.exclusive
        world.vms[self.name] = self  # type: ignore[assignment]
        return lease

    def _become_qemu(self, kernel: LaunchKernel, decided: Plan, lease: Lease) -> None:
        self.scope = kernel.tasks[self.pid].group.path.removesuffix("/libvirt")
        roles = {}
        for pin in decided.vcpus:
            roles[f"vCPU {pin.vcpu}"] = self._thread(kernel, f"CPU {pin.vcpu}/KVM")
        self._thread(kernel, "worker")
        lease.isolate(self.pid, roles)
        cpus = {roles[f"vCPU {pin.vcpu}"]: pin.cpus for pin in decided.vcpus}
        for tid in [tid for tid, task in kernel.tasks.items() if task.leader == self.pid]:
            planned = cpus.get(tid, decided.emulator)
            kernel.pin(tid, planned)
            assert kernel.affinity(tid) == planned, f"{kernel.tasks[tid].name} is not on {planned}"

    def _thread(self, kernel: LaunchKernel, name: str) -> int:
        return kernel.spawn(name, group=kernel.tasks[self.pid].group.path, leader=self.pid)

    def end(self, kernel: LaunchKernel) -> None:
        """QEMU and its helper are gone; systemd notices."""
        if self.helper:
            kernel.end(self.helper)
            self.helper = 0
        if self.pid:
            kernel.end(self.pid)
            self.pid = 0
        if self.scope.endswith(".scope"):
            kernel.forget_scope(self.scope)

    def stop(self, world: World, lease: Lease) -> None:
        """Stop it in order."""
        assert isinstance(world.kernel, LaunchKernel)
        del world.vms[self.name]
        self.end(world.kernel)
        lease.__exit__(None, None, None)
