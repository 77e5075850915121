"""Ten failures of others, each impossible here: one test a failure, named after it (peers.md)."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError, PlanError
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.hook import entry
from kvmhooks.isolate.kinds.hugepage_pools import HugePagePool
from kvmhooks.isolate.record.report import APPLIED, REFUSAL
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.placement import plan
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.golden.cases import golden_host
from tests.isolate_model.kernel import Kernel, Pool, Record
from tests.isolate_model.tree import plant, snapshot
from tests.isolate_model.world import (
    ISOLATION,
    PAGES,
    PagedVm,
    Vm,
    World,
    effective_state,
    intruders,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ADMIN = "etc/systemd/system.control/system.slice.d/50-AllowedCPUs.conf"


def guest(name: str = "a", cpus: str = "6-7", policy: str = ISOLATION) -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), policy)


def test_failure_1_an_empty_allowed_cpus_does_not_widen_the_set() -> None:
    """systemd#43846: the full mask is written, then our drop-in goes, and only ours."""
    kernel = Kernel("systemd", 8, 10)
    kernel.files[ADMIN] = "[Slice]\nAllowedCPUs=0-7\n"
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert kernel.read("sys/fs/cgroup/system.slice/cpuset.cpus") == "0-5"
    world.stop(vm)
    assert kernel.read("sys/fs/cgroup/system.slice/cpuset.cpus") == "0-7"
    assert [path for path in kernel.files if path.startswith("run/systemd")] == []
    assert kernel.files[ADMIN] == "[Slice]\nAllowedCPUs=0-7\n"
    kernel.reload_systemd()
    assert str(kernel.groups.effective(kernel.groups.find("system.slice"))) == "0-7"


def test_failure_1_an_administrators_runtime_property_is_given_back() -> None:
    """Their drop-in is the very file that ours would be in: it stays, with their value."""
    kernel = Kernel("systemd", 8, 10)
    kernel.set_unit("user.slice", CpuSet.parse("4-7"))
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert kernel.read("sys/fs/cgroup/user.slice/cpuset.cpus") == "4-5"
    world.stop(vm)
    kernel.reload_systemd()
    assert kernel.read("sys/fs/cgroup/user.slice/cpuset.cpus") == "4-7"


@pytest.mark.parametrize("flavour", ["systemd", "partitions"])
def test_failure_2_a_daemon_reload_changes_nothing(flavour: str) -> None:
    """systemd#40438: it owns the value that it would write."""
    kernel = Kernel(flavour, 8, 10)
    world = World(kernel)
    world.start(guest())
    kernel.reload_systemd()
    assert list(intruders(kernel, world)) == []


@pytest.mark.parametrize("flavour", ["systemd", "plain"])
def test_failure_3_enabling_the_controller_resets_affinities(flavour: str) -> None:
    """systemd#23748: every pinned task gets its own mask back, at once and at the end."""
    kernel = Kernel(flavour, 8, 10)
    home = "system.slice/cron.service"
    pids = [kernel.spawn("canary", group=home) for _ in range(3)]
    for pid, cpus in zip(pids, ("2", "2-3", "5-6"), strict=True):
        kernel.pin(pid, CpuSet.parse(cpus))
    world = World(kernel)
    vm = guest()
    world.start(vm)
    assert [str(kernel.affinity(pid)) for pid in pids] == ["2", "2-3", "5"]
    world.stop(vm)
    assert [str(kernel.affinity(pid)) for pid in pids] == ["2", "2-3", "5-6"]


def test_failure_4_controllers_are_enabled_from_the_top_down() -> None:
    """vfio-isolate#8: a VM two groups deep, beside which another one must be narrowed."""
    kernel = Kernel("plain", 8, 10)
    kernel.groups.make("machine.slice/tenant/other.scope")
    kernel.spawn("other", group="machine.slice/tenant/other.scope")
    world = World(kernel)
    before = effective_state(kernel)
    vm = guest()
    world.start(vm)
    assert list(intruders(kernel, world)) == []
    world.stop(vm)
    assert effective_state(kernel) == before


def test_failure_5_a_mask_of_several_cpus_on_isolated_ones() -> None:
    """seapath/ansible#908: all threads would stay on the first CPU, so the pin is refused."""
    vm = guest()
    xml = vm.xml.replace(b"cpuset='7'", b"cpuset='5,7'")
    world = World(Kernel("partitions", 8, 10))
    with pytest.raises(IsolationError, match="expected one CPU of its own"):
        entry.carry_out(Registry(world.kernel, Record(world.kernel)), "prepare", xml)


@pytest.mark.parametrize(
    "pin", ["<emulatorpin cpuset='0,6'/>", "<iothreadpin iothread='1' cpuset='7'/>"]
)
def test_failure_5_a_thread_behind_a_vcpu_never_runs(pin: str) -> None:
    """seapath/ansible#438, kubevirt#15404: QEMU's other threads have to be elsewhere."""
    vm = guest()
    xml = vm.xml.replace(b"<cputune>", f"<iothreads>1</iothreads><cputune>{pin}".encode())
    xml = xml.replace(b"<emulatorpin cpuset='0-1'/>", b"") if "emulator" in pin else xml
    world = World(Kernel("partitions", 8, 10))
    with pytest.raises(IsolationError, match="expected CPUs apart from 6-7"):
        entry.carry_out(Registry(world.kernel, Record(world.kernel)), "prepare", xml)


def test_failure_6_managed_interrupts_refuse_and_others_wait() -> None:
    """seastar#703, tuned#364: reported as refused or pending; the VM starts."""
    kernel = Kernel("systemd", 8, 30)
    world = World(kernel)
    vm = guest()
    world.call(vm, "prepare", "begin")
    report = world.call(vm, "start", "begin")
    assert report is not None
    refused = {result.key: result.why for result in report.of(REFUSAL)}
    managed = {f"irq/{number}" for number, irq in kernel.irqs.items() if irq.is_managed}
    assert refused == dict.fromkeys(managed, "EIO")
    waiting = {result.key for result in report.of(APPLIED) if result.why.startswith("pending")}
    assert waiting == {"irq/5", "irq/16", "irq/27"} - managed


class Irqbalance:
    """The daemon's socket: it takes up a change at its next scan."""

    def __init__(self, path: str, banned: CpuSet) -> None:
        self.banned = self.next = banned
        self.irqs = CpuSet({3})
        self.requests: list[str] = []
        self._peer = socket.socket(socket.AF_UNIX)
        self._peer.bind(path)
        self._peer.listen(8)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def scan(self) -> None:
        self.banned = self.next

    def close(self) -> None:
        self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._peer.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._peer.accept()
            except OSError:
                return
            with peer:
                request = peer.recv(500).decode()
                if request == "setup":
                    irqs = "".join(f"IRQ {irq} LOAD 0 DIFF 0 CLASS 0 " for irq in self.irqs)
                    banned = self.banned.format_mask(256)
                    peer.sendall(f"SLEEP 10 {irqs}BANNED {banned}".encode())
                    continue
                self.requests.append(request)
                if request.startswith("settings ban irqs "):
                    value = request.removeprefix("settings ban irqs ").replace(" ", ",")
                    self.irqs = CpuSet() if value == "NONE" else CpuSet.parse(value)
                    continue
                value = request.removeprefix("settings cpus ")
                self.next = CpuSet() if value == "NULL" else CpuSet.parse(value)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A short path: a socket's has at most 107 characters."""
    short = Path(f"/tmp/kvmhooks-{os.getpid()}")
    short.symlink_to(tmp_path)
    (tmp_path / "run/irqbalance").mkdir(parents=True)
    yield short
    short.unlink()


def test_failure_7_bans_of_others_survive(root: Path) -> None:
    """openshift NTO#396, cri-o#6145: merged with what was banned, whole lists, and given back."""
    kernel = Kernel("plain", 8, 4)
    plant(kernel, root)
    daemon = Irqbalance(f"{root}/run/irqbalance/irqbalance7.sock", CpuSet({0}))
    for operation in ("prepare", "start"):
        assert run(root, guest(), operation, "begin") == 0
    daemon.scan()
    assert str(daemon.banned) == "0,6-7"
    assert run(root, guest(), "release", "end") == 0
    daemon.scan()
    assert str(daemon.banned) == "0"
    daemon.close()
    assert daemon.requests == ["settings cpus 0,6-7", "settings cpus 0"]


def test_failure_7_the_interrupts_of_devices_that_vms_have_are_banned_as_well(root: Path) -> None:
    """It would move them away from where the VM wants them; others' bans stay."""
    plant(Kernel("plain", 8, 4), root)
    for device, irq in (("01:00.0", 1), ("01:00.0", 2), ("02:00.0", 0)):
        path = root / f"sys/bus/pci/devices/0000:{device}/msi_irqs/{irq}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    daemon = Irqbalance(f"{root}/run/irqbalance/irqbalance7.sock", CpuSet())
    given = (
        b"<devices><hostdev type='pci'><source><address domain='0x0000' bus='0x01' slot='0x00' "
        b"function='0x0'/></source></hostdev></devices></domain>"
    )
    xml = guest().xml.replace(b"</domain>", given)
    arguments = ("begin", "begin", "end")
    bans = []
    for operation, sub in zip(("prepare", "start", "release"), arguments, strict=True):
        assert (
            entry.main(["a", operation, sub, "-"], io.BytesIO(xml), io.StringIO(), str(root)) == 0
        )
        bans.append(str(daemon.irqs))
    assert bans == ["3", "1-3", "3"]
    daemon.close()


def test_failure_7_a_restarted_irqbalance_is_told_again(root: Path) -> None:
    """It has forgotten our bans, and another one's start tells it."""
    plant(Kernel("plain", 8, 4), root)
    first = Irqbalance(f"{root}/run/irqbalance/irqbalance7.sock", CpuSet())
    for operation in ("prepare", "start"):
        run(root, guest(), operation, "begin")
    first.close()
    (root / "run/irqbalance/irqbalance7.sock").unlink()
    second = Irqbalance(f"{root}/run/irqbalance/irqbalance8.sock", CpuSet())
    run(root, guest(), "reconnect", "begin")
    second.scan()
    assert str(second.banned) == "6-7"
    run(root, guest(), "release", "end")
    second.scan()
    assert str(second.banned) == ""
    second.close()


@pytest.mark.parametrize("scans_between", [True, False])
def test_failure_7_a_ban_that_was_not_taken_up_yet_is_taken_back(
    root: Path, *, scans_between: bool
) -> None:
    """VMs that end before the daemon scans leave nothing that its scan would do later, neither to
    the host nor to a VM whose CPUs are banned."""
    plant(Kernel("plain", 8, 4), root)
    daemon = Irqbalance(f"{root}/run/irqbalance/irqbalance7.sock", CpuSet({0}))

    def call(vm: Vm, *operations: str) -> None:
        for operation in operations:
            assert run(root, vm, operation, "end" if operation == "release" else "begin") == 0

    call(guest(), "prepare", "start")
    if scans_between:
        daemon.scan()
    call(guest("b", "4-5"), "prepare", "start", "release")
    daemon.scan()
    assert str(daemon.banned) == "0,6-7"
    call(guest("c", "4-5"), "prepare", "start", "release")
    call(guest(), "release")
    daemon.scan()
    assert str(daemon.banned) == "0"
    assert entry.reconcile(str(root), ()) == 0
    assert not (root / "run/kvmhooks/state.json").exists()
    daemon.close()


@pytest.mark.parametrize(("scans", "code"), [(True, 0), (False, 4)])
def test_failure_7_a_ban_is_off_the_record_once_it_is_seen_to_be_gone(
    root: Path, *, scans: bool, code: int
) -> None:
    """The daemon takes it up at its next scan: `reconcile` waits for that, but not for ever."""
    plant(Kernel("plain", 8, 4), root)
    daemon = Irqbalance(f"{root}/run/irqbalance/irqbalance7.sock", CpuSet())
    for operation in ("prepare", "start"):
        run(root, guest(), operation, "begin")
    daemon.scan()
    run(root, guest(), "release", "end")
    record = '"irqbalance'
    state = root / "run/kvmhooks/state.json"
    assert record in state.read_text()
    if scans:
        threading.Timer(0.1, daemon.scan).start()
    assert entry.reconcile(str(root), (0.1, 0.3)) == code
    assert (state.exists() and record in state.read_text()) is not scans
    daemon.close()


def run(root: Path, vm: Vm, operation: str, sub_operation: str) -> int:
    arguments = [vm.name, operation, sub_operation, "-"]
    return entry.main(arguments, io.BytesIO(vm.xml), io.StringIO(), str(root))


def test_failure_8_no_child_keeps_the_hooks_pipes(tmp_path: Path) -> None:
    """virt-manager#299: the pipes are closed as soon as the hook has ended."""
    plant(Kernel("plain", 8, 4), tmp_path)
    for operation in ("prepare", "start", "started"):
        done = subprocess.run(
            [sys.executable, "-m", "kvmhooks.isolate.hook", "--root", str(tmp_path), "a",
             operation, "begin", "-"],
            input=guest().xml, capture_output=True, timeout=10, check=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (b"", b"")


def test_failure_8_a_wait_is_bounded(tmp_path: Path) -> None:
    """vfio-isolate#6: another hook that holds the lock for ever does not hold us for as long."""
    plant(Kernel("plain", 8, 4), tmp_path)
    store = Store(str(tmp_path))
    system = System(str(tmp_path))
    other = Registry(System(str(tmp_path)), Store(str(tmp_path)), budget=0.2)
    begun = time.monotonic()
    with store.lock(system, 1), pytest.raises(IsolationError, match="another hook has held it"):
        other.reconcile()
    assert time.monotonic() - begun < 1


def with_pages(count: int) -> Vm:
    """A VM on 2 MiB pages of node 0."""
    return PagedVm("a", CpuSet.parse("6-7"), CpuSet.parse("0-1"), pages=count)


def test_failure_9_pages_are_had_by_compaction_or_not_at_all() -> None:
    """gpu-passthrough-tutorial#11: compact, ask again, and never keep a part."""
    kernel = Kernel("plain", 8, 4)
    kernel.files["sys/devices/system/node/node0/compact"] = ""
    kernel.pools[PAGES] = Pool(total=10, used=8, limit=40, compacted=90)
    world = World(kernel)
    vm = with_pages(64)
    world.start(vm)
    assert kernel.pools[PAGES].total == 8 + 64
    world.stop(vm)
    assert kernel.pools[PAGES].total == 10
    with pytest.raises(IsolationError, match="18 of 100 pages of 2048 KiB are missing on node 0"):
        world.start(with_pages(100))
    assert kernel.pools[PAGES].total == 10
    assert kernel.record is None


def test_failure_9_others_go_on_while_memory_is_compacted(tmp_path: Path) -> None:
    """vfio-isolate#6 was such a wait: VMs without huge pages start and stop in the middle of it."""
    plant(Kernel("plain", 8, 4), tmp_path)
    for name, text in {"nr": "0", "free": "0"}.items():
        path = tmp_path / PAGES / f"{name}_hugepages"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "sys/devices/system/node/node0/compact").write_text("")
    other = Vm("b", CpuSet.parse("4-5"), CpuSet.parse("0-1"))
    calls: list[int] = []

    class Slow(System):
        """Its pages come with the second compaction, in which another VM lives its whole life."""

        def write(self, path: str, text: str) -> None:
            super().write(path, text)
            if path.endswith("/compact"):
                calls.extend(
                    run(tmp_path, other, *operation)
                    for operation in (("prepare", "begin"), ("start", "begin"), ("release", "end"))
                )
            elif path.endswith("nr_hugepages"):
                count = text if len(calls) > 3 else "20"
                super().write(path, count)
                (tmp_path / PAGES / "free_hugepages").write_text(count)

    registry = Registry(Slow(str(tmp_path)), Store(str(tmp_path)))
    claim = read_claim(with_pages(64).xml)
    assert claim is not None
    registry.prepare(claim)
    assert calls == [0] * 6
    (held,) = registry.look().held.values()
    pools = registry.look().acquired(HugePagePool)
    assert (held.claim.name, pools) == ("a", {"0/2048": HugePagePool(shares={claim.key: 64})})
    registry.release(claim.key)
    assert (tmp_path / PAGES / "nr_hugepages").read_text().strip() == "0"


def test_failure_9_only_our_share_is_given_back_and_only_what_is_free() -> None:
    """ipaqmaster/vfio writes 0, whoever owned the pages; a used page would become surplus."""
    kernel = Kernel("plain", 8, 4)
    kernel.pools[PAGES] = Pool(total=4, used=4, limit=90, compacted=90)
    world = World(kernel)
    vm = with_pages(16)
    world.start(vm)
    kernel.pools[PAGES].used = 4 + 16
    kernel.pools[PAGES].total += 5  # an administrator adds some
    kernel.pools[PAGES].used -= 10  # not all of QEMU's pages are free yet when it ends
    world.stop(vm)
    assert kernel.pools[PAGES].total == 4 + 16 + 5 - 15
    kernel.pools[PAGES].used = 4
    world.reconcile()
    assert kernel.pools[PAGES].total == 4 + 5
    assert kernel.record is None


@pytest.mark.parametrize("cpus", ["5", "3,5,7", "1-7"])
def test_failure_10_any_number_of_cpus_and_any_parity(cpus: str) -> None:
    """kubevirt#10593: the VM owns what its pins say, odd or even, siblings or not."""
    kernel = Kernel("systemd", 8, 20)
    before = effective_state(kernel)
    world = World(kernel)
    vm = Vm("a", CpuSet.parse(cpus), CpuSet.parse("0"))
    world.start(vm)
    assert list(intruders(kernel, world)) == []
    world.stop(vm)
    assert effective_state(kernel) == before


@pytest.mark.parametrize(("host", "pins"), [("server", "1,9"), ("chiplets", "4-5")])
def test_failure_10_guest_siblings_are_host_siblings(host: str, pins: str) -> None:
    """kubevirt#4687: however the host numbers them, the threads of a core stay together."""
    made = plan(_dedicated(), golden_host(host))
    assert (made.topology.cores, made.topology.threads, str(made.exclusive)) == (1, 2, pins)


def test_failure_10_no_guest_threads_without_host_threads() -> None:
    """kubevirt#11749: refused, and the limit that binds is named."""
    with pytest.raises(PlanError, match="1 core with 2 free threads, expected at most 0"):
        plan(_dedicated(), golden_host("laptop"))


def _dedicated() -> VmSpec:
    text = 'name="a"\nmemory.size="1GiB"\nisolation.exclusive=true\n[cpu]\nvcpus=2\nthreads=2\n'
    return parse_vm(f'{text}placement="dedicated"', folder=Path("/"))


def test_the_tree_is_as_it_was_after_a_life(tmp_path: Path) -> None:
    """The same code on plain files, as `--root` runs it."""
    plant(Kernel("plain", 8, 20), tmp_path)
    before = snapshot(tmp_path)
    for operation, sub in (("prepare", "begin"), ("start", "begin"), ("started", "begin"),
                           ("stopped", "end"), ("release", "end")):  # fmt: skip
        assert run(tmp_path, guest(), operation, sub) == 0
    assert snapshot(tmp_path) == before
