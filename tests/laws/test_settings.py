"""Laws of the settings of VMs: each does something to the host, or whoever says it is told why not.

Every row of ``SETTINGS`` is said by VMs that have all that a setting may need, and by VMs that lack
a part of it; what becomes of the host is compared with the same VM that does not say it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final
from xml.sax.saxutils import quoteattr

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.inventory.usage import of_claim
from kvmhooks.isolate.claims.domain_xml import read_claim, without_effect
from kvmhooks.isolate.claims.effects import NEEDS
from kvmhooks.isolate.hook import entry
from kvmhooks.isolate.registry.unserved import unserved
from kvmhooks.policy import SETTINGS
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import KERNEL_THREAD, Kernel, Pool
from tests.isolate_model.mdev import MdevKernel
from tests.isolate_model.pci import Function
from tests.isolate_model.world import PAGES, Vm, World, effective_state, hostdev, requested_state
from tests.laws.test_drift import NIC, Balanced
from tests.laws.test_resources import MDEV, PF
from tests.unit.isolate.test_policy_knobs import BEFORE

Settings = dict[str, str]

SAID: Final[dict[str, list[tuple[str, Settings]]]] = {
    "isolation.exclusive": [("yes", {})],
    "isolation.strict": [("yes", {}), ("yes", {"memory.thp": "never"}),
                         ("yes", {"storage.requests": "512"})],
    "isolation.siblings": [("idle", {})],
    "isolation.irqs": [("no", {})],
    "isolation.tasks": [("no", {})],
    "isolation.workqueues": [("no", {})],
    "isolation.network": [("no", {})],
    "isolation.vfio": [("housekeeping", {})],
    "isolation.watchdog": [("yes", {})],
    "power.governor": [("performance", {})],
    "power.epp": [("128", {}), ("128", {"power.governor": "performance"}),
                  ("128", {"power.governor": "schedutil"})],
    "power.latency": [("n/a", {})],
    "power.boost": [("yes", {})],
    "memory.hugepages": [("keep", {})],
    "memory.thp": [("never", {})],
    "memory.ksm": [("0", {})],
    "memory.numa_balancing": [("0", {})],
    "memory.stat_interval": [("120", {})],
    "kernel.rt_runtime": [("900000", {})],
    "kernel.timer_migration": [("0", {})],
    "kernel.nmi_watchdog": [("0", {})],
    "kernel.perf_cpu_limit": [("0", {})],
    "kernel.perf_sample_rate": [("1000", {})],
    "kernel.halt_poll": [("0", {})],
    "storage.scheduler": [("none", {})],
    "storage.requests": [("512", {})],
    "devices.managed": [("yes", {})],
    "devices.pools": [(f"{PF}=2", {})],
    "devices.mdevs": [(f"{MDEV}={MdevKernel.PARENT}/{MdevKernel.SMALL}", {})],
    "devices.functions": [(f"{PF}/0 vlan=5", {"devices.pools": f"{PF}=2"})],
    "devices.allow": [("route", {}), ("route", {"devices.managed": "yes"})],
    "threads.vcpus": [("fifo:1", {})],
    "threads.uclamp_min": [("512", {})],
    "threads.uclamp_max": [("100", {})],
    "threads.sched_core": [("vcpus", {})],
    "threads.vhost": [("keep", {}), ("2", {})],
}  # fmt: skip
"""Values of each setting, and what is said beside."""

CASES: Final = [
    (name, value, beside) for name, several in SAID.items() for value, beside in several
]

ALL: Final = frozenset(("exclusive", "disk", "device", "unmanaged", "pages", "pins"))
"""The things that a VM may have and that settings may need."""

PARTS: Final = [ALL, *(ALL - {lack} for lack in sorted(ALL)), ALL - {"exclusive", "pins"},
                frozenset(("pins",)), frozenset[str]()]  # fmt: skip


def words(settings: Settings) -> str:
    """The metadata with these settings."""
    elements: dict[str, str] = {}
    for name, value in settings.items():
        element, _, attribute = name.partition(".")
        elements[element] = f"{elements.get(element, '')} {attribute}={quoteattr(value)}"
    return "".join(f"<kvmhooks:{each}{texts}/>" for each, texts in elements.items())


class Guest(Vm):
    """A VM that has some of the parts."""

    def __init__(self, settings: Settings, parts: frozenset[str]) -> None:
        own = {"isolation.exclusive": "yes"} if "exclusive" in parts else {}
        super().__init__("a", CpuSet({6, 7}), CpuSet({0, 1}), words(own | settings) or " ")
        self.parts = parts
        disk = "<disk type='block'><source dev='/dev/sdb'/></disk>" if "disk" in parts else ""
        managed = "no" if "unmanaged" in parts else "yes"
        nic = hostdev(NIC, managed) if "device" in parts else ""
        self.devices = f"<devices>{disk}{nic}</devices>"

    @property
    def xml(self) -> bytes:
        text = super().xml
        if not self.parts & {"exclusive", "pins"}:
            text = text.replace(b"<vcpupin", b"<other")
        if "pages" not in self.parts:
            return text
        pages = (
            b"<memory unit='MiB'>8</memory><memoryBacking><hugepages><page size='2' unit='M'/>"
            b"</hugepages></memoryBacking><numatune><memory nodeset='0'/></numatune></domain>"
        )
        return text.replace(b"</domain>", pages)


class Launched(World):
    """A host whose QEMU has a vhost worker."""

    def _launch(self, vm: Vm) -> None:
        super()._launch(vm)
        self.kernel.spawn(f"vhost-{vm.pid}", flags=KERNEL_THREAD, parent=2)


def host_for(name: str) -> Kernel:
    """A host that has what the setting is of; for ``strict`` one that refuses what it is told."""
    if name == "devices.mdevs":
        divided = MdevKernel()
        divided.files |= BEFORE
        divided.pci.plug(NIC, Function(7, "e1000e", ("e1000e",)))
        divided.pools[PAGES] = Pool(total=0, used=0, limit=64, compacted=64)
        return divided
    kernel = Balanced("systemd")
    kernel.pci.plug(PF, Function(8, "e1000e", ("e1000e",), total=4, vfs=[]))
    kernel.pools[PAGES] = Pool(total=0, used=0, limit=64, compacted=64)
    return kernel


REFUSING: Final = ("sys/", "proc/", "affinity", "irqbalance", "systemd")
"""The beginnings of writes to the host, of those that the model knows."""


def refuse(what: str) -> None:
    """A host that can be told nothing; pages and devices are refused whether `strict` or not."""
    if what.startswith(REFUSING) and not what.startswith(("sys/bus/pci", PAGES)):
        raise OSError(errno.EIO, "the host refuses it", what)


def bare(name: str) -> Kernel:
    """The same host without the files that settings are written to."""
    kernel = host_for(name)
    kernel.files = {path: text for path, text in kernel.files.items() if path not in BEFORE}
    return kernel


def outcome(name: str, guest: Guest, host: Callable[[str], Kernel] = host_for) -> object:
    """Return what becomes of a host that a VM is started on, or why it is refused."""
    world = Launched(host(name))
    if name == "isolation.strict":
        world.kernel.step = refuse
    try:
        world.start(guest)
    except IsolationError as error:
        return str(error)
    kernel = world.kernel
    (held,) = world.state.held.values()
    claim = held.claim
    own = claim.exclusive or "pins" in guest.parts
    return (
        effective_state(kernel),
        requested_state(kernel),
        {tid: {**task.scheduling, "cookie": task.scheduling["cookie"] != "0"}
         for tid, task in kernel.tasks.items()},
        {at: pool.total for at, pool in kernel.pools.items()},
        kernel.links,
        [demand.to_json() for several in claim.demands.values() for demand in several],
        of_claim(claim).keeps_siblings and bool(own),
        getattr(kernel, "banned", None),
    )  # fmt: skip


def test_every_setting_is_in_the_table() -> None:
    """One that is added is held to the law; and no condition is of a setting that is not."""
    assert {*SAID} == {*SETTINGS}
    assert {*NEEDS} <= {*SETTINGS}


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: " ".join(sorted(parts)) or "nothing")
@pytest.mark.parametrize(("name", "value", "beside"), CASES)
def test_a_setting_changes_the_host_or_is_told_to_do_nothing(
    name: str, value: str, beside: Settings, parts: frozenset[str]
) -> None:
    """One or the other, never both and never neither; the sentence has its name and its value."""
    if name == "isolation.exclusive":
        parts -= {"exclusive"}
    silent, says = Guest(beside, parts), Guest({**beside, name: value}, parts)
    told = without_effect(says.xml, host_for(name))
    hollow = [text for text in told if text.startswith(f"{name}: {value!r} does nothing: ")]
    changed = outcome(name, silent) != outcome(name, says)
    assert changed != bool(hollow), told


@pytest.mark.parametrize("name", SAID)
def test_a_vm_that_has_all_hollows_nothing(name: str) -> None:
    """Each setting does something under some claim."""
    value, beside = SAID[name][-1] if name == "devices.allow" else SAID[name][0]
    guest = Guest({**beside, name: value}, ALL)
    assert without_effect(guest.xml, host_for(name)) == []


@pytest.mark.parametrize("name", SAID)
def test_a_host_that_has_no_file_for_it_is_told(name: str) -> None:
    """One or the other here, too: by `simulate`, the hook's log and `status`, in the same words."""
    value, beside = SAID[name][-1] if name == "devices.allow" else SAID[name][0]
    parts = ALL - {"exclusive"} if name == "isolation.exclusive" else ALL
    silent, says = Guest(beside, parts), Guest({**beside, name: value}, parts)
    claim = read_claim(says.xml)
    assert claim is not None
    left_out = dict(unserved(bare(name), claim, ()))
    assert (outcome(name, silent, bare) != outcome(name, says, bare)) != (name in left_out)
    world = Launched(bare(name))
    logged: list[str] = []
    world.kernel.log = lambda line, *_, **__: logged.append(line)  # type: ignore[method-assign]
    world.start(says)
    entry.foresee(world.registry, says.xml)
    for why in left_out.values():
        assert f"a: {name}: left out: {why}" in logged
        assert f"  {name}: left out: {why}" in world.told()


HOLLOW: Final = {name: several[0] for name, several in SAID.items() if name in NEEDS}


@pytest.mark.parametrize("name", HOLLOW)
def test_the_hook_logs_it_and_the_vm_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's VM is not kept from starting; the administrator's words for all are no VM's."""
    value, beside = HOLLOW[name]
    guest = Guest({**beside, name: value}, frozenset())
    world = Launched(host_for(name))
    logged: list[str] = []
    monkeypatch.setattr(type(world.kernel), "log", lambda _self, line, **_: logged.append(line))
    world.start(guest)
    logged.clear()
    entry.foresee(world.registry, guest.xml)
    (line,) = [line for line in logged if f"a: {name}: {value!r} does nothing: " in line]
    table, _, key = name.partition(".")
    logged.clear()
    world.kernel.files["etc/kvmhooks/kvmhooks.toml"] = f'[{table}]\n{key} = "{value}"\n'
    entry.foresee(world.registry, Guest(beside, frozenset()).xml)
    assert [each for each in logged if f"a: {name}: " in each] == []
    world.kernel.files["etc/kvmhooks/vm.d/a.toml"] = f'[{table}]\n{key} = "{value}"\n'
    entry.foresee(world.registry, Guest(beside, frozenset()).xml)
    assert line in logged


def recorded(guest: Guest) -> str:
    """Libvirt's record of a VM that runs."""
    return f"<domstatus state='running' pid='7'>{guest.xml.decode()}</domstatus>"


@pytest.mark.parametrize("name", HOLLOW)
def test_status_tells_it_of_a_vm_that_runs(name: str) -> None:
    """By libvirt's record: a device that was plugged in since counts."""
    value, beside = HOLLOW[name]
    guest = Guest({**beside, name: value}, frozenset())
    assert read_claim(guest.xml) is not None
    world = Launched(host_for(name))
    world.start(guest)
    assert " does nothing: " not in world.told()
    path = f"run/libvirt/qemu/{guest.name}.xml"
    world.kernel.files[path] = recorded(guest)
    assert f"  {name}: {value!r} does nothing: " in world.told()
    world.kernel.files[path] = recorded(Guest({**beside, name: value}, ALL))
    assert (f"{name}: {value!r} does nothing: " in world.told()) == (name == "devices.allow")
