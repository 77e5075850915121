"""The model of one host's kernel, and of systemd, behind the same door as the real one.

Reading never changes anything. Every write, to the host and to the record alike, first goes through
``step``, where a test may let the hook die or the write fail.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.bus import BusError, Systemd
from kvmhooks.isolate.children import StuckError
from kvmhooks.isolate.door import Door
from kvmhooks.isolate.knobs.caches import SCHEMATA, merged
from kvmhooks.isolate.scheduling import COOKIE, DEFAULTS, NEW
from kvmhooks.isolate.store import RECORD, Store
from kvmhooks.values import CpuSet
from tests.isolate_model.cgroups import Cgroups, Group
from tests.isolate_model.pci import BUS, HangingError, Pci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CGROUP = "sys/fs/cgroup"


def drop_in(unit: str) -> str:
    """Where systemd puts a runtime ``AllowedCPUs``; a VM's scope is transient."""
    where = "transient" if unit.startswith("machine-") else "system.control"
    return f"run/systemd/{where}/{unit}.d/50-AllowedCPUs.conf"


KERNEL_THREAD = 0x0020_0040
BOUND_THREAD = 0x0420_0040


def nothing(what: str) -> None:
    """No test looks at this step."""
    del what


class Irq:
    """One interrupt."""

    def __init__(self, mask: CpuSet, *, managed: bool, pending: bool, serial: int) -> None:
        self.mask = mask
        self.effective = CpuSet({max(mask) - serial % 2})
        self.is_managed = managed
        self.is_pending = pending
        """Whether a change waits for the next interrupt (IO-APIC)."""
        self.serial = serial
        self.action: str | None = None
        """The driver's name for it; None for one like any other."""


class Task:
    """One task; every process has one thread here, but QEMU."""

    def __init__(self, *, name: str, parent: int, flags: int, group: Group, start: int) -> None:
        self.name = name
        self.parent = parent
        self.flags = flags
        self.group = group
        self.start = start
        self.leader = 0
        self.mask = CpuSet()
        self.scheduling = dict(DEFAULTS)
        self.wish: CpuSet | None = None
        """What its owner asked for; kernels before 6.2 forget it when the cpuset changes."""


class Pool:
    """Huge pages of one size on one node; memory is fragmented until it is compacted."""

    def __init__(self, *, total: int, used: int, limit: int, compacted: int) -> None:
        self.total = total
        self.used = used
        self.limit = limit
        self.compacted = compacted

    def resize(self, count: int) -> None:
        """What a write to ``nr_hugepages`` does: cut silently, and never below what is in use."""
        self.total = max(min(count, self.limit), self.used)


class Kernel(Door):
    """A host in memory. ``flavour`` is ``partitions``, ``systemd``, ``plain`` or ``legacy``."""

    def __init__(self, flavour: str, cpus: int, irqs: int, release: str = "") -> None:
        super().__init__("/model")
        self.flavour = flavour
        self.release = release or ("6.12.0-model" if flavour == "partitions" else "6.1.0-model")
        self.online = CpuSet(range(cpus))
        has_partitions = flavour == "partitions"
        self.groups = Cgroups(
            self.online, is_unified=flavour != "legacy", has_partitions=has_partitions
        )
        self.base = f"{CGROUP}/cpuset" if flavour == "legacy" else CGROUP
        self.has_systemd = flavour in {"systemd", "partitions"}
        self.default = self.online
        self.irqs = {
            number: Irq(self.online, managed=number % 7 == 3, pending=number % 11 == 5, serial=0)
            for number in range(irqs)
        }
        self.tasks: dict[int, Task] = {}
        self.files: dict[str, str] = {
            "proc/sys/kernel/random/boot_id": "boot-1",
            "proc/sys/kernel/numa_balancing": "1",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
            "proc/meminfo": "MemTotal: 1 kB\nHugepagesize:    2048 kB",
        }
        self.masks = {
            f"sys/devices/virtual/workqueue/{name}cpumask": self.online
            for name in ("", "writeback/", "nvme-wq/")
        }
        self.masks["sys/class/net/eth0/queues/rx-0/rps_cpus"] = CpuSet()
        self.masks["sys/class/net/eth0/queues/tx-0/xps_cpus"] = self.online
        self.pools: dict[str, Pool] = {}
        self.pci = Pci()
        self.loadable = {"vfio-pci"}
        """Modules that `modprobe` finds."""
        self.links: dict[str, str] = {}
        self.clock = 0
        self.record: str | None = None
        self.released: set[str] = set()
        self.step: Callable[[str], None] = nothing
        self.libvirtd = 0
        self.takes = 0
        """Seconds that each step of a device takes."""
        self.has_cookies = True
        """Whether the kernel has core scheduling."""
        self._populate()

    def _populate(self) -> None:
        for path in ("init.scope", "system.slice/cron.service", "user.slice", "machine.slice"):
            if self.flavour != "legacy" or path == "machine.slice":
                self.groups.make(path)
        if self.flavour == "legacy":
            self.groups.make("docker/a")
        home = "" if self.flavour == "legacy" else "system.slice/cron.service"
        self.spawn("systemd", group="" if self.flavour == "legacy" else "init.scope", pid=1)
        self.spawn("kthreadd", flags=KERNEL_THREAD, pid=2, parent=0)
        self.spawn("rcu_sched", flags=KERNEL_THREAD, parent=2)
        kswapd = self.spawn("kswapd0", flags=KERNEL_THREAD, parent=2)
        self.pin(kswapd, CpuSet({0}))  # of a small node, which no VM has
        self.spawn("migration/0", flags=BOUND_THREAD, parent=2)
        self.libvirtd = self.spawn("libvirtd", group=home)
        self.spawn("cron", group=home)
        if self.flavour == "legacy":
            self.spawn("container", group="docker/a")
        if self.flavour == "plain":  # an init that makes no groups leaves everything in the root
            self.spawn("udevd")

    # --- the door -------------------------------------------------------------------------------

    def read(self, path: str) -> str:  # noqa: C901, PLR0911 -- a table of places
        if path in self.files:
            return self.files[path].strip()
        if path.startswith(f"{BUS}/"):
            return self.pci.read(path)
        if path in self.masks:
            return self.masks[path].format_mask(len(self.online))
        parts = path.split("/")
        if path.startswith("proc/irq/"):
            return self._read_irq(parts[2], parts[-1])
        if path.startswith("sys/kernel/irq/"):
            return self._read_irq(parts[3], parts[-1])
        if path.startswith(f"{self.base}/"):
            inner, _, name = path.removeprefix(f"{self.base}/").rpartition("/")
            return self.groups.read(self.groups.find(inner), name)
        if parts[0] == "proc" and parts[1].isdigit():
            return self._read_task(int(parts[-2]), parts[-1])
        if path in {f"sys/devices/system/cpu/{name}" for name in ("online", "possible")}:
            return str(self.online)
        if path.endswith("_hugepages") and path.rpartition("/")[0] in self.pools:
            pool = self.pools[path.rpartition("/")[0]]
            return str(pool.total if path.endswith("nr_hugepages") else pool.total - pool.used)
        if path == "proc/sys/kernel/osrelease":
            return self.release
        raise FileNotFoundError(errno.ENOENT, "no such file", path)

    def lines(self, path: str) -> list[str]:
        return self.read(path).split("\n")

    def administrators(self, path: str) -> str | None:
        return self.files.get(path)

    def hold(self, path: str) -> str:
        return self.read(path)

    def read_back(self, path: str) -> str:
        return self.read(path)

    def crowded(self, path: str, names: Iterable[str]) -> set[str]:
        del path, names
        return set()

    def write(self, path: str, text: str) -> None:
        self.read(path)
        self.step(path)
        self.put(path, text)

    def write_within(self, seconds: float, path: str, text: str) -> None:
        assert path.startswith(f"{BUS}/")
        assert seconds > 0
        self.clock += self.takes
        if not self.pci.has(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self.step(path)
        try:
            self.pci.write(path, text)
        except HangingError:
            raise StuckError(self.spawn("hook", parent=self.libvirtd), seconds) from None

    def ask_program(self, words: list[str], seconds: float) -> str:
        assert words[:2] == ["kvmhooks", "functions"]
        assert seconds > 0
        self.clock += self.takes
        pf, *rest = words[2:]
        if pf not in self.pci.functions:
            raise IsolationError(f"{pf}: no such device")
        if not rest:
            return self.pci.told(pf)
        self.step(f"function {rest}")
        self.pci.set_function(pf, int(rest[0]), rest[1:])
        return ""

    def load(self, module: str, seconds: float) -> None:
        del seconds
        self.pci.drivers |= {module} & self.loadable

    def link(self, path: str) -> str:
        return self.pci.link(path) if path.startswith(f"{BUS}/") else self.links.get(path, "")

    def put(self, path: str, text: str) -> None:
        """Write as the kernel would, without a step: others than the hook write, too."""
        if path in self.masks:
            mask = CpuSet.parse_mask(text)
            if "workqueue" in path and not mask:
                raise OSError(errno.EINVAL, "an empty mask", path)
            self.masks[path] = mask
        elif path.startswith("proc/irq/"):
            self._write_irq(path.split("/")[2], text)
        elif path.startswith(f"{self.base}/"):
            inner, _, name = path.removeprefix(f"{self.base}/").rpartition("/")
            with self._tasks_follow():
                self.groups.write(self.groups.find(inner), name, text)
            if text in {"+cpuset", "-cpuset"} and not self.keeps_wishes:
                self._reset_masks(self.groups.find(inner))
        elif path.endswith("nr_hugepages"):
            self.pools[path.rpartition("/")[0]].resize(int(text))
        elif path.endswith("/compact"):
            for pool in self.pools.values():
                pool.limit = pool.compacted
        else:
            self.files[path] = self._kept(path, text)

    def _kept(self, path: str, text: str) -> str:
        """What a file holds after a write, where that is not the text itself."""
        if path == SCHEMATA:
            ways = f"{int(text.partition('=')[2], 16):b}"
            if "0" in ways.strip("0") or "1" not in ways:
                raise OSError(errno.EINVAL, "ways that are not adjacent", text)
            return merged(self.files[path], text)
        if path.endswith("enabled"):
            words = ("always", "madvise", "never")
            return " ".join(f"[{one}]" if one == text else one for one in words)
        return text

    def names(self, path: str) -> list[str]:
        if path == "proc":
            return sorted(str(tid) for tid, one in self.tasks.items() if one.leader == tid)
        if path.startswith("proc/") and path.endswith("/task"):
            pid = int(path.split("/")[1])
            return sorted(str(tid) for tid, one in self.tasks.items() if one.leader == pid)
        if path.startswith(f"{BUS}/"):
            return self.pci.names(path)
        found = set()
        for one in (*self.files, *self.masks, *self.links):
            if one.startswith(f"{path}/"):
                found.add(one.removeprefix(f"{path}/").split("/")[0])
        return sorted(found)

    def inodes(self, path: str) -> dict[str, int]:
        if path == f"{BUS}/devices":
            return self.pci.inodes()
        assert path in {"proc/irq", "sys/kernel/irq"}
        return {str(number): irq.serial for number, irq in self.irqs.items()}

    def directories(self, path: str) -> list[str]:
        if path == self.base or path.startswith(f"{self.base}/"):
            inner = path.removeprefix(self.base).strip("/")
            return sorted(self.groups.find(inner).children)
        prefixes = [one for one in (*self.files, *self.masks) if one.startswith(f"{path}/")]
        below = (one.removeprefix(f"{path}/").split("/") for one in prefixes)
        return sorted({parts[0] for parts in below if len(parts) > 1})

    def has(self, path: str) -> bool:
        if path == "run/systemd/system":
            return self.has_systemd
        if path.startswith(f"{BUS}/"):
            return self.pci.has(path)
        try:
            self.read(path)
        except OSError:
            return False
        return True

    def unlink(self, path: str) -> None:
        self.step(path)
        del self.files[path]

    def remove_empty(self, path: str) -> None:
        self.step(path)

    def block_device(self, device: str) -> str:
        return device.rpartition("/")[2]

    def is_socket(self, path: str) -> bool:
        return path.endswith(".sock") and path in self.files

    def affinity(self, tid: int) -> CpuSet:
        return self._task(tid).mask

    def set_affinity(self, tid: int, cpus: CpuSet) -> None:
        self._task(tid)
        self.step(f"affinity of {tid}")
        self.pin(tid, cpus)

    def scheduling(self, tid: int, what: str) -> str:
        task = self._task(tid)
        if what == COOKIE and not self.has_cookies:
            raise OSError(errno.EINVAL, "CONFIG_SCHED_CORE is not set", str(tid))
        return task.scheduling[what]

    def set_scheduling(self, tid: int, what: str, value: str) -> None:
        """A cookie that is new is for all threads of a process, any other value for one thread."""
        self.scheduling(tid, what)
        self.step(f"{what} of {tid}")
        self.clock += 1
        for other, task in self.tasks.items():
            if value == NEW and task.leader == tid:
                task.scheduling[what] = str(self.clock)
            elif value != NEW and other == tid:
                task.scheduling[what] = value

    def systemd(self, timeout: float = 5.0) -> Systemd | None:
        del timeout
        return ModelSystemd(self) if self.has_systemd else None

    def log(self, line: str, severity: int = 6) -> None:
        """Nobody listens."""

    def parent(self) -> int:
        return self.libvirtd

    def now(self) -> float:
        return float(self.clock)

    def sleep(self, seconds: float) -> None:
        del seconds
        raise AssertionError("nothing in the model needs to wait")

    # --- what happens on the host ---------------------------------------------------------------

    def spawn(
        self,
        name: str,
        *,
        group: str = "",
        flags: int = 0,
        parent: int = 1,
        pid: int = 0,
        leader: int = 0,
    ) -> int:
        """Start a process, or a thread of ``leader``; it inherits its parent's mask."""
        self.clock += 1
        pid = pid or max(self.tasks, default=99) + 1
        where = self.groups.find(group)
        task = Task(name=name, parent=parent, flags=flags, group=where, start=self.clock)
        task.leader = leader or pid
        forked = self.tasks.get(leader or parent)
        effective = self.groups.effective(where)
        task.mask = (
            self.online if forked is None or flags else (forked.mask & effective) or effective
        )
        task.wish = None if forked is None or flags else forked.wish
        if forked is not None:
            task.scheduling[COOKIE] = forked.scheduling[COOKIE]
        self.tasks[pid] = task
        where.tasks.add(pid)
        return pid

    def end(self, pid: int) -> None:
        """End a process with all its threads."""
        for tid in [tid for tid, one in self.tasks.items() if pid in {tid, one.leader}]:
            self.tasks.pop(tid).group.tasks.discard(tid)

    def pin(self, tid: int, cpus: CpuSet) -> None:
        """``sched_setaffinity(2)``."""
        task = self._task(tid)
        if task.flags & 0x0400_0000:
            raise OSError(errno.EINVAL, "this thread cannot be moved", str(tid))
        allowed = cpus & self.groups.effective(task.group)
        if not allowed:
            raise OSError(errno.EINVAL, "no CPU of its cpuset", str(tid))
        task.mask, task.wish = allowed, cpus

    def add_irq(self) -> int:
        """A driver requests an interrupt: it gets the default mask."""
        self.clock += 1
        number = max(self.irqs, default=0) + 1
        self.irqs[number] = Irq(self.default, managed=False, pending=False, serial=self.clock)
        return number

    def set_unit(self, unit: str, cpus: CpuSet, section: str = "Slice") -> None:
        """What systemd does for ``AllowedCPUs=`` of a unit."""
        group = next((one for one in self.groups.root.walk() if one.name == unit), None)
        if group is None or group.parent is None:
            raise BusError(f"systemd: Unit {unit} not loaded.")
        text = f"# By systemd.\n[{section}]\nAllowedCPUs=\nAllowedCPUs={cpus}\n"
        self.files[drop_in(unit)] = text
        if not cpus:  # the live set stays as it is (systemd#43846)
            self._drop_controllers()
            return
        above: list[Group] = []
        parent: Group | None = group.parent
        while parent is not None:
            above.insert(0, parent)
            parent = parent.parent
        for one in above:
            if not one.has_controller:
                self.put(
                    f"{self.base}/{one.path}/cgroup.subtree_control".replace("//", "/"), "+cpuset"
                )
        self.put(f"{self.base}/{group.path}/cpuset.cpus", str(cpus))

    def reload_systemd(self) -> None:
        """It applies what its drop-ins say; without one it leaves the set as it is."""
        for group in list(self.groups.root.walk()):
            text = self.files.get(drop_in(group.name))
            if text is not None:
                self.set_unit(group.name, _cpus_of(text))
        self._drop_controllers()

    def _drop_controllers(self) -> None:
        """A controller that no unit needs any more is dropped, as seen in the lab."""
        said = [text for path, text in self.files.items() if path.endswith("/50-AllowedCPUs.conf")]
        groups = list(self.groups.root.walk())
        if any(map(_cpus_of, said)) or any(one.path.startswith("machine.slice/") for one in groups):
            return
        for group in reversed(groups):
            if group.has_controller:
                path = f"{self.base}/{group.path}/cgroup.subtree_control".replace("//", "/")
                self.put(path, "-cpuset")

    @property
    def keeps_wishes(self) -> bool:
        """Whether a task's own mask outlives a change of its cpuset (from 6.2)."""
        return tuple(map(int, self.release.split(".")[:2])) >= (6, 2)

    def _reset_masks(self, above: Group) -> None:
        """The controller comes or goes: tasks get their group's mask (systemd#23748)."""
        for group in above.walk():
            for tid in group.tasks if group is not above else ():
                self.tasks[tid].mask = self.groups.effective(group)

    def _task(self, tid: int) -> Task:
        if tid not in self.tasks:
            raise ProcessLookupError(errno.ESRCH, "no such task", str(tid))
        return self.tasks[tid]

    def _read_task(self, tid: int, name: str) -> str:
        if tid not in self.tasks:
            raise FileNotFoundError(errno.ENOENT, "no such task", str(tid))
        task = self.tasks[tid]
        if name == "stat":
            fields = ["S", str(task.parent), "0", "0", "0", "0", str(task.flags), *["0"] * 12]
            return f"{tid} ({task.name}) {' '.join(fields)} {task.start} 0"
        if name == "cgroup":
            hierarchies = ("0:",) if self.groups.is_unified else ("5:devices", "4:cpuset")
            return "\n".join(f"{one}:/{task.group.path}" for one in hierarchies)
        raise FileNotFoundError(errno.ENOENT, "no such file", name)

    def _read_irq(self, number: str, name: str) -> str:
        if number == "default_smp_affinity":
            return self.default.format_mask(len(self.online))
        irq = self.irqs.get(int(number))
        texts = (
            {}
            if irq is None
            else {
                "smp_affinity_list": str(irq.mask),
                "effective_affinity_list": str(irq.effective),
                "chip_name": "IR-PCI-MSI",
                "hwirq": str(irq.serial),
                "actions": irq.action or ("" if int(number) % 13 == 12 else f"device-{number}"),
            }
        )
        if name not in texts:
            raise FileNotFoundError(errno.ENOENT, "no such interrupt", number)
        return texts[name]

    def _write_irq(self, number: str, text: str) -> None:
        if number == "default_smp_affinity":
            mask = CpuSet.parse_mask(text)
            if not mask & self.online:
                raise OSError(errno.EINVAL, "no online CPU", number)
            self.default = mask
            return
        irq = self.irqs[int(number)]
        mask = CpuSet.parse(text)
        if irq.is_managed:
            raise OSError(errno.EIO, "a managed interrupt", number)
        if not mask & self.online:
            raise OSError(errno.EINVAL, "no online CPU", number)
        irq.mask = mask
        if not irq.is_pending and not irq.effective <= mask:
            irq.effective = CpuSet({mask.first()})

    @contextmanager
    def _tasks_follow(self) -> Iterator[None]:
        """After a change of the groups the kernel sets the masks of the tasks concerned."""
        before = {id(group): self.groups.effective(group) for group in self.groups.root.walk()}
        isolated = self.groups.isolated()
        yield
        for task in self.tasks.values():
            effective = self.groups.effective(task.group)
            is_movable_thread = task.flags and not task.flags & 0x0400_0000
            if task.group.parent is None and is_movable_thread:
                if self.groups.isolated() != isolated:
                    task.mask = self.online - self.groups.isolated()
            elif task.flags:
                continue
            elif effective != before.get(id(task.group)):
                wish = task.wish if self.keeps_wishes else None
                task.mask = (effective & wish if wish else effective) or effective


def _cpus_of(drop_in: str) -> CpuSet:
    """What a drop-in says in the end."""
    return CpuSet.parse(drop_in.strip().rpartition("=")[2])


class ModelSystemd(Systemd):
    """systemd's manager, asked without a bus."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__("", 0)
        self._kernel = kernel

    def set_cpus(self, unit: str, cpus: CpuSet) -> None:
        self._kernel.step(f"systemd: {unit}")
        try:
            self._kernel.set_unit(unit, cpus)
        except OSError as error:
            raise BusError(f"systemd: {error}") from error

    def reload(self) -> None:
        self._kernel.step("systemd: reload")
        self._kernel.reload_systemd()


class Record(Store):
    """What is on record, in the model's memory."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__("/model")
        self._kernel = kernel

    def load(self) -> str | None:
        return self._kernel.record

    def save(self, text: str) -> None:
        self._kernel.step("record")
        self._kernel.record = text

    def clear(self) -> None:
        if self._kernel.record is not None:
            self._kernel.step("record")
            self._kernel.record = None

    def note_release(self, key: str) -> None:
        if self._kernel.record is not None:
            self._kernel.step("released")
            self._kernel.released.add(key)

    def released(self) -> set[str]:
        return set(self._kernel.released)

    def forget_release(self, key: str) -> None:
        if key in self._kernel.released:
            self._kernel.step("released")
            self._kernel.released.remove(key)

    @contextmanager
    def lock(self, door: Door, timeout: float, name: str = RECORD) -> Iterator[None]:
        del door, timeout, name
        yield
