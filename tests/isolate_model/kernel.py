"""The model of one host's kernel, and of systemd, with the same methods as the real one.

Reading never changes anything. Every write, to the host and to the record alike, first goes through
``step``, where a test may let the hook die or the write fail.
"""

from __future__ import annotations

import errno
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.knobs.resctrl import SCHEMATA, merged
from kvmhooks.isolate.record.store import RECORD, Store
from kvmhooks.isolate.system.dbus import BusError, Systemd
from kvmhooks.isolate.system.processes import StuckError
from kvmhooks.isolate.system.scheduling import COOKIE, DEFAULTS, NEW
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.cgroups import Cgroups, Group
from tests.isolate_model.pci import BUS, HangingError, Pci

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CGROUP = "sys/fs/cgroup"
WORKQUEUES = "sys/devices/virtual/workqueue/cpumask"
"""The mask of unbound workqueues; that asked for and that of isolated CPUs have longer names."""
POLICIES = "sys/devices/system/cpu/cpufreq"


def drop_in(unit: str) -> str:
    """Return the path of a runtime ``AllowedCPUs``; a VM's, and systemd-run's, is transient."""
    is_transient = unit.startswith(("machine-", "run-"))
    where = "transient" if is_transient else "system.control"
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
        """A change waits for the next interrupt (IO-APIC)."""
        self.serial = serial
        self.action: str | None = None
        """The driver's name for it; None for one like any other."""
        self.thread = 0
        """The kernel thread that handles it, where there is one."""
        self.is_moved = True
        """It was moved since it last came: its thread follows then."""


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
        self.user_cpus: CpuSet | None = None
        """The mask that it was given; kernels before 6.2 forget it when the cpuset changes."""
        self.preferred: CpuSet | None = None
        """A kernel thread's node or interrupt; before 7.0 forgotten when a partition changes."""


class Pool:
    """Huge pages of one size on one node; memory is fragmented until it is compacted."""

    def __init__(self, *, total: int, used: int, limit: int, compacted: int) -> None:
        self.total = total
        self.used = used
        self.limit = limit
        self.compacted = compacted

    def resize(self, count: int) -> None:
        """Resize as a write to ``nr_hugepages``: cut silently, and never below what is in use."""
        self.total = max(min(count, self.limit), self.used)


class Kernel(System):
    """A host in memory. ``flavour`` is ``partitions``, ``systemd``, ``plain`` or ``legacy``."""

    def __init__(self, flavour: str, cpus: int, irqs: int, release: str = "") -> None:
        super().__init__("/model")
        self.flavour = flavour
        self.release = release or ("6.12.0-model" if flavour == "partitions" else "6.1.0-model")
        self.online = self.possible = CpuSet(range(cpus))
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
        self.groups.leader_of = lambda tid: self.tasks[tid].leader
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
        self.asked = self.online
        """The mask that was asked for of unbound workqueues."""
        self.masks["sys/class/net/eth0/queues/rx-0/rps_cpus"] = CpuSet()
        self.masks["sys/class/net/eth0/queues/tx-0/xps_cpus"] = self.online
        self.pools: dict[str, Pool] = {}
        self.pci = Pci()
        self.loadable = {"vfio-pci"}
        """Modules that `modprobe` finds."""
        self.links: dict[str, str] = {}
        self.clock = 0
        self.pace = 0.0
        """Seconds that each look at the host takes, and each write."""
        self.looked = 0
        self.record: str | None = None
        self.waiter = ""
        self.released: set[str] = set()
        self.locked: set[str] = set()
        """The locks that another call holds."""
        self.affinities: dict[str, CpuSet] = {}
        """The units with ``CPUAffinity=``."""
        self.step: Callable[[str], None] = nothing
        self.libvirtd = 0
        self.takes = 0
        """Seconds that each step of a device takes."""
        self.removed: set[str] = set()
        """Units whose files an administrator has removed."""
        self.has_cookies = True
        """The kernel has core scheduling."""
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
        self.tasks[kswapd].mask = self.tasks[kswapd].preferred = CpuSet({0})  # of a small node
        self.spawn("migration/0", flags=BOUND_THREAD, parent=2)
        if 1 in self.irqs:
            self.irqs[1].thread = self.spawn("irq/1-aerdrv", flags=KERNEL_THREAD, parent=2)
            self.interrupt(1)
        self.libvirtd = self.spawn("libvirtd", group=home)
        self.spawn("cron", group=home)
        if self.flavour == "legacy":
            self.spawn("container", group="docker/a")
        if self.flavour == "plain":  # an init that makes no groups leaves everything in the root
            self.spawn("udevd")

    # --- the system -----------------------------------------------------------------------------

    def read(self, path: str) -> str:
        self.looked += 1
        if path.startswith(f"{POLICIES}/policy") and not self._policy(path) & self.online:
            raise OSError(errno.EBUSY, "an inactive policy", path)
        return self._text(path)

    def _text(self, path: str) -> str:  # noqa: C901, PLR0911, PLR0912 -- a table of places
        if path in self.files:
            return self.files[path].strip()
        if path.startswith(f"{BUS}/"):
            return self.pci.read(path)
        if path in self.masks:
            return self.masks[path].format_mask(len(self.possible))
        if path.startswith(WORKQUEUES) and self.groups.has_partitions:
            known = {"requested": self.asked, "isolated": self.groups.isolated()}
            asked = known.get(path.removeprefix(f"{WORKQUEUES}_"))
            if asked is not None:
                return asked.format_mask(len(self.possible))
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
        if path == "sys/devices/system/cpu/online":
            return str(self.online)
        if path == "sys/devices/system/cpu/possible":
            return str(self.possible)
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
            if path == WORKQUEUES:
                self.asked = mask  # and the isolated CPUs are let in again
        elif path.startswith("proc/irq/"):
            self._write_irq(path.split("/")[2], text)
        elif path.startswith(f"{self.base}/"):
            inner, _, name = path.removeprefix(f"{self.base}/").rpartition("/")
            with self._tasks_follow():
                self.groups.write(self.groups.find(inner), name, text)
            if text in {"+cpuset", "-cpuset"}:
                self._reset_masks(self.groups.find(inner))
        elif path.endswith("nr_hugepages"):
            self.pools[path.rpartition("/")[0]].resize(int(text))
        elif path.endswith("/compact"):
            for pool in self.pools.values():
                pool.limit = pool.compacted
        else:
            self.files[path] = self._kept(path, text)

    def _kept(self, path: str, text: str) -> str:
        """Return the text of a file after a write, where that is not the text itself."""
        if path == SCHEMATA:
            ways = f"{int(text.partition('=')[2], 16):b}"
            if "0" in ways.strip("0") or "1" not in ways:
                raise OSError(errno.EINVAL, "ways that are not adjacent", text)
            return merged(self.files[path], text)
        if path.endswith("enabled"):
            words = ("always", "madvise", "never")
            return " ".join(f"[{word}]" if word == text else word for word in words)
        return text

    def names(self, path: str) -> list[str]:
        self.looked += 1
        if path == "proc":
            return sorted(str(tid) for tid, task in self.tasks.items() if task.leader == tid)
        if path.startswith("proc/") and path.endswith("/task"):
            pid = int(path.split("/")[1])
            return sorted(str(tid) for tid, task in self.tasks.items() if task.leader == pid)
        if path.startswith(f"{BUS}/"):
            return self.pci.names(path)
        found = set()
        for known in (*self.files, *self.masks, *self.links):
            if known.startswith(f"{path}/"):
                found.add(known.removeprefix(f"{path}/").split("/")[0])
        return sorted(found)

    def inodes(self, path: str) -> dict[str, int]:
        self.looked += 1
        if path == f"{BUS}/devices":
            return self.pci.inodes()
        if path == "run/kvmhooks":  # it is another file whenever it is written
            return {} if self.record is None else {"state.json": zlib.crc32(self.record.encode())}
        assert path in {"proc/irq", "sys/kernel/irq"}
        return {str(number): irq.serial for number, irq in self.irqs.items()}

    def directories(self, path: str) -> list[str]:
        self.looked += 1
        if path == self.base or path.startswith(f"{self.base}/"):
            inner = path.removeprefix(self.base).strip("/")
            return sorted(self.groups.find(inner).children)
        prefixes = [known for known in (*self.files, *self.masks) if known.startswith(f"{path}/")]
        below = (prefix.removeprefix(f"{path}/").split("/") for prefix in prefixes)
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
        self.looked += 1
        return self._task(tid).mask & self.online

    def mask(self, tid: int) -> CpuSet:
        self.looked += 1
        return self._task(tid).mask

    def set_affinity(self, tid: int, cpus: CpuSet) -> None:
        self.affinity(tid)
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
        return self.clock + self.pace * self.looked

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
        task.user_cpus = (
            None if forked is None or (flags and not self.keeps_user_cpus) else forked.user_cpus
        )
        whole = self._housekeeping if flags else effective
        task.mask = _cut(
            whole if forked is None or flags else forked.mask & effective, task.user_cpus
        )
        task.mask = task.mask or effective
        if forked is not None:
            task.scheduling[COOKIE] = forked.scheduling[COOKIE]
        self.tasks[pid] = task
        where.tasks.add(pid)
        return pid

    def end(self, pid: int) -> None:
        """End a process with all its threads."""
        for tid in [tid for tid, task in self.tasks.items() if pid in {tid, task.leader}]:
            self.tasks.pop(tid).group.tasks.discard(tid)

    def pin(self, tid: int, cpus: CpuSet) -> None:
        """``sched_setaffinity(2)``."""
        task = self._task(tid)
        if task.flags & 0x0400_0000:
            raise OSError(errno.EINVAL, "this thread cannot be moved", str(tid))
        allowed = cpus & self._allowed(task.group)
        if not allowed & self.online:
            raise OSError(errno.EINVAL, "no CPU of its cpuset", str(tid))
        task.mask, task.user_cpus = allowed, cpus

    def interrupt(self, number: int) -> None:
        """An interrupt comes: its thread follows it, cut to what that was given."""
        irq = self.irqs[number]
        if irq.thread and irq.is_moved:
            task = self.tasks[irq.thread]
            task.mask = _cut(irq.effective, task.user_cpus if self.keeps_user_cpus else None)
            task.preferred = irq.effective
            irq.is_moved = False

    def isolate(self, path: str, cpus: CpuSet) -> None:
        """Somebody makes an isolated partition of a group at the top; without CPUs, ends it."""
        group = self.groups.make(path)
        with self._tasks_follow():
            group.exclusive, group.partition = cpus, "isolated" if cpus else "member"
            if not cpus:
                self.groups.remove(path)

    def take_offline(self, cpu: int) -> None:
        """A CPU goes: masks in the root keep it, those of groups follow, interrupts leave it."""
        self._set_online(self.online - CpuSet({cpu}))

    def bring_online(self, cpu: int) -> None:
        """It comes back."""
        self._set_online(self.online | CpuSet({cpu}))

    def _set_online(self, online: CpuSet) -> None:
        """Change the CPUs that are online as cpuset_hotplug_workfn(), which does not touch the
        tasks whose CPU set is the root's, and irq_migrate_all_off_this_cpu() do, the latter with
        the mask left as it is.
        """
        with self._tasks_follow(is_hotplug=True):
            self.online = self.groups.online = online
            if not self.groups.is_unified:  # v1 forgets the CPU for good
                for group in self.groups.root.walk():
                    group.cpus &= online
        for irq in self.irqs.values():
            if not irq.effective & online:
                irq.effective = CpuSet({((irq.mask & online) or online).first()})

    def _policy(self, path: str) -> CpuSet:
        """Return the CPUs that share a clock, by its directory: policyN is CPU N's alone."""
        return CpuSet({int(path.removeprefix(f"{POLICIES}/policy").partition("/")[0])})

    def add_irq(self) -> int:
        """A driver requests an interrupt: it gets the default mask."""
        self.clock += 1
        number = max(self.irqs, default=0) + 1
        self.irqs[number] = Irq(self.default, managed=False, pending=False, serial=self.clock)
        return number

    def set_unit(self, unit: str, cpus: CpuSet, section: str = "Slice") -> None:
        """Set ``AllowedCPUs=`` of a unit as systemd does."""
        group = next((group for group in self.groups.root.walk() if group.name == unit), None)
        is_kept = drop_in(unit) in self.files  # of a unit that has ended
        if unit in self.removed or ((group is None or group.parent is None) and not is_kept):
            raise BusError(f"systemd: org.freedesktop.systemd1.NoSuchUnit: Unit {unit} not found.")
        text = f"# By systemd.\n[{section}]\nAllowedCPUs=\nAllowedCPUs={cpus}\n"
        self.files[drop_in(unit)] = text
        if group is None or group.parent is None:
            return
        if not cpus:  # the live set stays as it is (systemd#43846)
            self._drop_controllers()
            return
        above: list[Group] = []
        parent: Group | None = group.parent
        while parent is not None:
            above.insert(0, parent)
            parent = parent.parent
        for upper in above:
            if not upper.has_controller:
                self.put(
                    f"{self.base}/{upper.path}/cgroup.subtree_control".replace("//", "/"), "+cpuset"
                )
        self.put(f"{self.base}/{group.path}/cpuset.cpus", str(cpus))

    def start_unit(self, path: str) -> int:
        """A unit starts, with what systemd has kept of it, and its one process."""
        group = self.groups.make(path)
        kept = self.files.get(drop_in(group.name))
        if kept is not None:
            self.set_unit(group.name, _cpus_of(kept))
        pid = self.spawn(group.name, group=path)
        self.tasks[pid].mask = self.groups.effective(group)  # cpuset_attach()
        return pid

    def stop_unit(self, path: str) -> None:
        """A unit ends, and with it what systemd has of a transient one."""
        group = self.groups.find(path)
        for tid in list(group.tasks):
            self.end(tid)
        self.groups.remove(path)
        if "/transient/" in drop_in(group.name):
            self.files.pop(drop_in(group.name), None)

    def reload_systemd(self) -> None:
        """It applies what its drop-ins say; without one it leaves the set as it is."""
        for group in list(self.groups.root.walk()):
            text = self.files.get(drop_in(group.name))
            if text is not None:
                self.set_unit(group.name, _cpus_of(text))
        self._drop_controllers()

    def _drop_controllers(self) -> None:
        """A controller that no unit needs any more is dropped, as seen in the lab."""
        texts = [text for path, text in self.files.items() if path.endswith("/50-AllowedCPUs.conf")]
        groups = list(self.groups.root.walk())
        if any(map(_cpus_of, texts)) or any(
            group.path.startswith("machine.slice/") for group in groups
        ):
            return
        for group in reversed(groups):
            if group.has_controller:
                path = f"{self.base}/{group.path}/cgroup.subtree_control".replace("//", "/")
                self.put(path, "-cpuset")

    def _allowed(self, group: Group) -> CpuSet:
        """Return what sched_setaffinity(2) allows a group's tasks.

        Offline CPUs are among it only outside of any group with a set, and not before 6.2
        (3fb906e7fabb).
        """
        if self.groups.has_set(group) or not self.keeps_user_cpus:
            return self.groups.effective(group)
        return self.possible - self.groups.isolated()

    def _inherited(self, group: Group) -> CpuSet:
        """Return what a group's tasks may use when that changes.

        cpuset_attach() gives those whose set is the root's all possible CPUs.
        """
        if self.groups.has_set(group):
            return self.groups.effective(group)
        return self.possible - self.groups.isolated()

    def _follow(self, task: Task) -> None:
        """Give a task what its group may use, and from 6.2 on what its owner asked of that."""
        inherited = self._inherited(task.group)
        user_cpus = task.user_cpus if self.keeps_user_cpus else None
        task.mask = (inherited & user_cpus if user_cpus else inherited) or inherited

    @property
    def _release(self) -> tuple[int, ...]:
        return tuple(map(int, self.release.split(".")[:2]))

    @property
    def _housekeeping(self) -> CpuSet:
        """The CPUs that a kernel thread is born on: before 7.0 also those that are isolated."""
        return self.online - (self.groups.isolated() if self._release >= (7, 0) else CpuSet())

    @property
    def keeps_user_cpus(self) -> bool:
        """A task's own mask outlives a change of its cpuset (from 6.2)."""
        return self._release >= (6, 2)

    @property
    def spreads_threads(self) -> bool:
        """A partition spreads the kernel's threads; none gets its place back before 7.0."""
        return self.groups.has_partitions and self._release < (7, 0)

    def _reset_masks(self, above: Group) -> None:
        """The controller comes or goes: tasks get their group's mask (systemd#23748)."""
        for group in above.walk():
            for tid in group.tasks if group is not above else ():
                self._follow(self.tasks[tid])

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
            return "\n".join(f"{hierarchy}:/{task.group.path}" for hierarchy in hierarchies)
        raise FileNotFoundError(errno.ENOENT, "no such file", name)

    def _read_irq(self, number: str, name: str) -> str:
        if number == "default_smp_affinity":
            return self.default.format_mask(len(self.possible))
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
        irq.mask, irq.is_moved = mask, True
        if not irq.is_pending and not irq.effective <= mask:
            irq.effective = CpuSet({mask.first()})
        if self._release >= (6, 9) and not irq.is_pending:
            self.interrupt(int(number))  # its thread is woken at once

    @contextmanager
    def _tasks_follow(self, *, is_hotplug: bool = False) -> Iterator[None]:
        """After a change of the groups the kernel sets the masks of the tasks concerned."""
        before = {id(group): self.groups.effective(group) for group in self.groups.root.walk()}
        isolated = self.groups.isolated()
        yield
        if self.groups.isolated() != isolated:
            self.masks[WORKQUEUES] = self.asked - self.groups.isolated() or self.asked
        for task in self.tasks.values():
            effective = self.groups.effective(task.group)
            is_movable_thread = task.flags and not task.flags & 0x0400_0000
            if task.group.parent is None and is_movable_thread:
                if self.groups.isolated() != isolated:
                    task.mask = self._placed(task)
            elif task.flags or (is_hotplug and not self.groups.has_set(task.group)):
                continue
            elif effective != before.get(id(task.group)):
                self._follow(task)

    def _placed(self, task: Task) -> CpuSet:
        """Return the CPUs that a task of the root group gets when a partition comes or goes."""
        free = self.possible - self.groups.isolated()
        preferred = task.preferred if self._release >= (7, 0) else None
        return _cut(_cut(free, preferred), task.user_cpus if self.keeps_user_cpus else None)


def _cut(cpus: CpuSet, user_cpus: CpuSet | None) -> CpuSet:
    """Return the rest of a mask for a task that was given another one; all where there is none."""
    return (cpus & user_cpus or cpus) if user_cpus else cpus


def _cpus_of(drop_in: str) -> CpuSet:
    """Return the CPUs that a drop-in sets in the end."""
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

    def affinities(self, seconds: float) -> tuple[dict[str, CpuSet], bool]:
        del seconds
        return self._kernel.affinities, True

    def reload(self) -> None:
        self._kernel.step("systemd: reload")
        self._kernel.reload_systemd()


class Record(Store):
    """The record, in the model's memory."""

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

    def waiter(self) -> str:
        return self._kernel.waiter

    def note_waiter(self, text: str) -> None:
        self._kernel.waiter = text

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
    def lock(self, system: System, timeout: float, name: str = RECORD) -> Iterator[None]:
        del system, timeout, name
        yield

    def is_busy(self, system: System, name: str = RECORD) -> bool:
        del system
        return name in self._kernel.locked
