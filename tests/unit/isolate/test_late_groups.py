"""Groups that come beside a VM that runs: narrowed at once, given back exactly, or named."""

from __future__ import annotations

import errno
import json
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.cli.status import held_things
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm import neighbours
from kvmhooks.isolate.vm.cgroups import Groups
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Record
from tests.isolate_model.world import (
    Vm,
    World,
    effective_state,
    intruders,
    requested_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmhooks.isolate.record.report import Report

SLICE = "batch.slice"
SERVICE = "machine.slice/run-u1.service"
"""A container, as systemd-run makes one: it is transient."""
KEPT = "machine.slice/web.service"
"""A service with a unit file."""
RAW = "docker"


def guest(name: str = "a", cpus: str = "6-7") -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"))


def narrow(world: World) -> Report:
    """Act as the follower does when a group has come."""
    return Registry(world.kernel, Record(world.kernel)).narrow()


def allow_raw(kernel: Kernel, word: str = "true") -> None:
    kernel.files[administrator.HOST] = f"[host]\nraw_groups = {word}\n"


@pytest.mark.parametrize("path", [SLICE, SERVICE, KEPT])
def test_a_unit_that_comes_later_is_kept_off(path: str) -> None:
    """With the task in it that its owner has pinned there; the release gives all of it back."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    pinned = kernel.start_unit(path)
    kernel.pin(pinned, CpuSet({6}))
    assert list(intruders(kernel, world)) != []
    narrow(world)
    assert list(intruders(kernel, world)) == []
    assert str(kernel.groups.effective(kernel.groups.find(path))) == "0-5"
    world.stop(vm)
    assert str(kernel.groups.effective(kernel.groups.find(path))) == "0-7"
    assert kernel.tasks[pinned].mask == (CpuSet({6}) if path == SLICE else kernel.online)
    assert [path for path in kernel.files if "AllowedCPUs" in path] == []
    assert kernel.record is None


def test_nothing_else_is_looked_at_or_written() -> None:
    """Of a hundred interrupts and tasks none: one call of systemd, and the record around it."""
    kernel = Kernel("systemd", 8, 100)
    world = World(kernel)
    world.start(guest())
    kernel.start_unit(SLICE)
    before = world.state.records
    steps: list[str] = []
    kernel.step = steps.append
    narrow(world)
    assert steps == ["record", f"systemd: {SLICE}", "record"]
    after = world.state.records
    assert {key: after[key].to_line(key) for key in before} == {
        key: record.to_line(key) for key, record in before.items()
    }
    assert after.keys() - before.keys() == {f"cpus/{SLICE}"}
    del steps[:]
    narrow(world)
    assert steps == []


@pytest.mark.parametrize(
    ("path", "left"), [(SERVICE, False), (SLICE, True), (KEPT, True)], ids=["transient", "", "file"]
)
def test_a_unit_that_has_gone_owes_what_systemd_keeps_of_it(path: str, left: bool) -> None:  # noqa: FBT001
    """A transient one nothing; the drop-in of another would narrow it at its next start."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    before = effective_state(kernel)
    vm = guest()
    world.start(vm)
    kernel.start_unit(path)
    narrow(world)
    kernel.stop_unit(path)
    world.reconcile()
    assert (f"cpus/{path}" in world.state.records) is left
    if left:
        again = kernel.start_unit(path)
        assert str(kernel.affinity(again)) == "0-5", "it starts off the VM's CPUs"
        kernel.stop_unit(path)
    world.stop(vm)
    assert effective_state(kernel) == before
    assert kernel.record is None
    again = kernel.start_unit(path)
    assert kernel.affinity(again) == kernel.online


def test_a_unit_whose_file_has_gone_too_owes_nothing() -> None:
    """systemd knows no such unit any more: the drop-in is removed, and nobody tries for ever."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    before = effective_state(kernel)
    vm = guest()
    world.start(vm)
    kernel.start_unit(KEPT)
    narrow(world)
    kernel.stop_unit(KEPT)
    kernel.removed.add("web.service")
    world.stop(vm)
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_tasks_of_another_managers_group_are_theirs() -> None:
    """A task that is pinned there stays where it is, though older kernels forget such masks when
    systemd brings the controller.
    """
    kernel = Kernel("systemd", 8, 4)
    kernel.groups.make(f"{RAW}/a")
    pinned = kernel.spawn("pinned", group=f"{RAW}/a")
    kernel.pin(pinned, CpuSet.parse("5-6"))
    world = World(kernel)
    world.start(guest())
    assert str(kernel.affinity(pinned)) == "5-6"
    allow_raw(kernel)
    world.reconcile()
    assert str(kernel.affinity(pinned)) == "5"


RAW_GROUPS: dict[tuple[str, str], tuple[str, str, str]] = {
    # flavour, word, what its manager has set: what it may use while the VM runs
    ("systemd", ""): ("0-7", "0-7", "6-7"),
    ("systemd", "true"): ("0-5", "0-5", "6-7"),
    ("systemd", "false"): ("0-7", "0-7", "6-7"),
    ("plain", ""): ("0-5", "0-5", "0-5"),
    ("partitions", ""): ("0-5", "0-5", "0-5"),
    ("partitions", "true"): ("0-5", "0-5", "0-5"),
}


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "late"])
@pytest.mark.parametrize(("flavour", "word"), RAW_GROUPS)
def test_another_managers_group_is_theirs(flavour: str, word: str, is_late: bool) -> None:  # noqa: FBT001
    """It is narrowed where we are let, and only if they have set no CPUs; the tasks that may run
    there are named, by where they may run. Without systemd groups have no other manager, and
    partitions need none to be narrowed."""
    kernel = Kernel(flavour, 8, 4)
    if word:
        allow_raw(kernel, word)
    if kernel.has_systemd:  # a unit that has CPUs of its own keeps the controller
        kernel.set_unit("user.slice", CpuSet.parse("0-3"))
    kernel.groups.root.has_controller = True
    world = World(kernel)
    asked = requested_state(kernel)
    vm = guest()

    def make() -> None:
        kernel.groups.make(RAW)
        kernel.groups.make("kubepods")
        for name in (RAW, "kubepods"):
            pid = kernel.spawn(f"{name}d", group=name)
            kernel.pin(pid, kernel.online)
        kernel.put(f"{kernel.base}/kubepods/cpuset.cpus", "6-7")

    if not is_late:
        make()
    world.start(vm)
    if is_late:
        make()
        narrow(world)
    found = [str(kernel.groups.effective(kernel.groups.find(path))) for path in (RAW, "kubepods")]
    free, _, set_ = RAW_GROUPS[flavour, word]
    assert found == [free, set_]
    groups = held_things(world.registry, world.state)["groups"]
    named = {group["group"]: group for group in groups}
    expected = {
        f"/{name}": [f"{name}d"]
        for name, cpus in ((RAW, free), ("kubepods", set_))
        if not CpuSet.parse(cpus).isdisjoint(vm.cpus)
    }
    names = {path: [each["name"] for each in entry["processes"]] for path, entry in named.items()}
    assert names == expected
    for path in expected:
        assert f"group {path} may run on 6-7" in world.told()
    world.stop(vm)
    left = requested_state(kernel)
    assert (left.pop(RAW).strip(), left.pop("kubepods").strip()) == ("member", "6-7  member")
    assert left == asked


def test_the_word_is_true_or_false() -> None:
    """Anything else is refused with the place, and no start is let through."""
    kernel = Kernel("systemd", 8, 4)
    allow_raw(kernel, '"yes"')
    with pytest.raises(IsolationError, match=r"host.raw_groups: found 'yes', expected true or fal"):
        World(kernel).start(guest())


def test_an_ordinary_vm_is_narrowed_when_its_process_is_there() -> None:
    """Not before: its group could be that of a VM which is to have CPUs of its own."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(guest())
    plain = guest("plain", "0-1")
    plain.policy, plain.serial = "", 7
    kernel.groups.make(plain.scope)
    report = narrow(world)
    assert (report.is_pending, str(kernel.groups.find(plain.scope).cpus)) == (True, "")
    qemu = kernel.spawn("qemu-kvm", group=plain.scope, parent=kernel.libvirtd)
    kernel.pin(qemu, kernel.online)
    report = narrow(world)
    assert (report.is_pending, str(kernel.affinity(qemu))) == (False, "0-5")


def test_a_vm_of_ours_that_is_being_started_is_not_taken_for_anothers() -> None:
    """libvirt must be able to pin it, however early the follower of another sees its group."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(guest())
    second = guest("b", "4-5")
    make: Callable[[str], object] = kernel.groups.make

    def make_and_see(path: str) -> object:
        made = make(path)
        if path.startswith("machine.slice/") and world.vms:
            narrow(world)
        return made

    kernel.groups.make = make_and_see  # type: ignore[method-assign,assignment]
    world.start(second)
    kernel.groups.make = make  # type: ignore[method-assign,assignment]
    assert list(intruders(kernel, world)) == []


@pytest.mark.parametrize(
    ("pins", "before", "after"),
    [("7", "0-5,7", "0-5"), ("5-7", "0-5", "0-5"), ("6-7", "0-7", "0-5"), ("0", "0-5", "0-5")],
)
def test_another_vm_that_is_pinned_to_taken_cpus_starts_all_the_same(
    pins: str, before: str, after: str
) -> None:
    """libvirt's pins would be refused otherwise, and with them the start of a VM that is none of
    ours; once it runs it leaves them."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(guest())
    plain = guest("plain", "0")
    plain.policy, plain.serial = "", 7
    record = "run/libvirt/qemu/plain.xml"
    kernel.groups.make(plain.scope)
    pid = kernel.spawn("qemu-kvm", group=plain.scope, parent=kernel.libvirtd)
    xml = plain.xml.decode().replace("vcpu='0' cpuset='0'", f"vcpu='0' cpuset='{pins}'")
    state = "<domstatus state='{}' reason='{}' pid='{}'>{}</domstatus>"
    kernel.files[record] = state.format("paused", "starting up", pid, xml)
    narrow(world)
    scope = kernel.groups.find(plain.scope)
    assert str(kernel.groups.effective(scope)) == before
    kernel.pin(pid, CpuSet.parse(pins))
    kernel.files[record] = state.format("running", "booted", pid, xml)
    world.call(plain, "started", "begin")
    assert str(kernel.groups.effective(scope)) == after
    assert list(intruders(kernel, world)) == []


class Deep(System):
    """Groups below each other until their path is longer than the kernel takes."""

    def directories(self, path: str) -> list[str]:
        if len(path) >= 4_096:
            raise OSError(errno.ENAMETOOLONG, "too long", path)
        return ["d"]

    def lines(self, path: str) -> list[str]:
        return [str(path.count("/d/"))]


def test_groups_may_lie_as_deep_as_a_container_likes() -> None:
    """Thousands below each other cost no start and no follower a traceback."""
    groups = Groups(base="sys/fs/cgroup", is_unified=True)
    found = list(neighbours.members(Deep(), groups, SERVICE))
    assert len(found) > sys.getrecursionlimit()


def test_with_partitions_there_is_nothing_to_do() -> None:
    """The kernel keeps late groups off by itself: no write, no lookup of groups."""
    kernel = Kernel("partitions", 8, 4)
    world = World(kernel)
    world.start(guest())
    kernel.start_unit(SLICE)
    kernel.start_unit(SERVICE)
    steps: list[str] = []
    kernel.step = steps.append
    narrow(world)
    assert steps == []
    assert list(intruders(kernel, world)) == []
    assert held_things(world.registry, world.state)["groups"] == []


def test_status_names_what_runs_where_it_should_not() -> None:
    """A unit that nobody has narrowed yet, and what of it may run on the VM's CPUs."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(guest())
    pid = kernel.start_unit(SERVICE)
    off = kernel.spawn("elsewhere", group=SERVICE)
    kernel.pin(off, CpuSet({0}))
    document = held_things(world.registry, world.state)
    expected = {
        "group": f"/{SERVICE}",
        "cpus": "6-7",
        "manager": "systemd",
        "processes": [{"pid": pid, "name": "run-u1.service"}],
    }
    assert json.loads(json.dumps(document["groups"])) == [expected]
    assert f"group /{SERVICE} may run on 6-7: run-u1.service {pid}" in world.told()
    narrow(world)
    assert held_things(world.registry, world.state)["groups"] == []


def test_a_process_adds_no_line_to_what_status_says() -> None:
    """Any user's may give itself any name (prctl(2), PR_SET_NAME)."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    world.start(guest())
    kernel.start_unit(SERVICE)
    pid = kernel.spawn("x\nb: 2-3", group=SERVICE)
    kernel.pin(pid, kernel.online)
    text = world.told()
    assert [line for line in text.split("\n") if line.startswith("b")] == []
    assert f"x\\u000ab: 2-3 {pid}" in text


EVENTS = st.lists(
    st.tuples(st.sampled_from(["come", "go", "narrow", "reconcile"]), st.integers(0, 3)),
    max_size=12,
)


@given(EVENTS)
def test_law_whatever_comes_and_goes_the_host_ends_as_it_was(events: list[tuple[str, int]]) -> None:
    """And nothing runs on the VM's CPUs once the follower has looked."""
    paths = [SLICE, SERVICE, KEPT, RAW]
    kernel = Kernel("systemd", 8, 2)
    allow_raw(kernel)
    world = World(kernel)
    before = effective_state(kernel)
    vm = guest()
    world.start(vm)
    there: set[str] = set()
    for what, at in events:
        path = paths[at]
        if what == "come" and path not in there:
            kernel.start_unit(path)
            there.add(path)
        elif what == "go" and path in there:
            kernel.stop_unit(path)
            there.remove(path)
        elif what == "narrow":
            narrow(world)
            assert list(intruders(kernel, world)) == []
        elif what == "reconcile":
            world.reconcile()
            assert list(intruders(kernel, world)) == []
    world.stop(vm)
    for path in there:
        assert kernel.groups.effective(kernel.groups.find(path)) == kernel.online
        kernel.stop_unit(path)
    assert effective_state(kernel) == before
    assert kernel.record is None
