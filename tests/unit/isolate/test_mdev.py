"""Mediated devices on the model of a kernel: made, shared, refused, removed whoever dies."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvmhooks.cli.status import held_things
from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.record.report import FAILED
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.isolate.resources.mdev import PARENTS
from kvmhooks.values import CpuSet
from tests.isolate_model.mdev import MdevKernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import (
    ISOLATION,
    GivenVm,
    Killed,
    World,
    effective_state,
    killed_after,
)

PARENT, SMALL, LARGE = MdevKernel.PARENT, MdevKernel.SMALL, MdevKernel.LARGE
FIRST, SECOND, THIRD, FOURTH, FIFTH = (
    f"c0d5a2b0-0000-4000-8000-00000000000{at}" for at in range(5)
)


@pytest.fixture
def kernel() -> MdevKernel:
    return MdevKernel()


def guest(*uuids: str, name: str = "guest", cpus: str = "6-7", kind: str = SMALL) -> GivenVm:
    """A VM with mediated devices of one type."""
    devices = ",".join(f"{uuid}={PARENT}/{kind}" for uuid in uuids)
    policy = f'{ISOLATION}<kvmhooks:devices mdevs="{devices}"/>'
    return GivenVm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), (), policy)


def test_a_vm_has_its_devices_while_it_lives(kernel: MdevKernel) -> None:
    """They are made before it starts, told, and removed once it has ended."""
    before = effective_state(kernel)
    world = World(kernel)
    vm = guest(FIRST, SECOND)
    world.start(vm)
    assert kernel.made() == {FIRST: SMALL, SECOND: SMALL}
    told = held_things(world.registry, world.state)["mediated_devices"]
    assert [device.pop("host")["state"] for device in told] == ["held", "held"]
    assert told == [
        {"uuid": uuid, "parent": PARENT, "type": SMALL, "by": "guest"} for uuid in (FIRST, SECOND)
    ]
    world.stop(vm)
    assert kernel.made() == {}
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_device_that_was_there_stays(kernel: MdevKernel) -> None:
    """It is the VM's for its life, and nobody's of ours."""
    kernel._create(SMALL, FIRST)
    world = World(kernel)
    vm = guest(FIRST)
    world.start(vm)
    assert world.state.resources == {}
    world.stop(vm)
    assert kernel.made() == {FIRST: SMALL}


@pytest.mark.parametrize(
    ("vm", "message"),
    [
        (
            guest(FIRST, kind=LARGE),
            f"guest: {FIRST}: found it there, a {SMALL} of {PARENT}, expected a {LARGE} of ",
        ),
        (
            guest(SECOND, kind="nvidia-99"),
            f"guest: {SECOND}: {PARENT}: found no mediated devices of type nvidia-99, expected ",
        ),
        (
            guest(SECOND, THIRD, FOURTH),
            f"guest: {FOURTH}: found available_instances 2 at /{PARENTS}/{PARENT}/mdev_supported_",
        ),
    ],
    ids=["another type", "no such type", "one too many"],
)
def test_what_cannot_be_had_is_refused(kernel: MdevKernel, vm: GivenVm, message: str) -> None:
    """And what was made by then is removed."""
    kernel._create(SMALL, FIRST)
    before = effective_state(kernel)
    world = World(kernel)
    with pytest.raises(IsolationError) as caught:
        world.start(vm)
    assert str(caught.value).startswith(message)
    assert kernel.made() == {FIRST: SMALL}
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_parent_that_is_used_up_is_told_with_its_file(kernel: MdevKernel) -> None:
    """Before anything is made."""
    for uuid in (FIRST, SECOND, THIRD):
        kernel._create(SMALL, uuid)
    with pytest.raises(IsolationError) as caught:
        World(kernel).start(guest(FOURTH))
    assert str(caught.value) == (
        f"guest: {FOURTH}: found available_instances 0 at /{PARENTS}/{PARENT}/mdev_supported_types/"
        f"{SMALL}, expected 1 or more"
    )


def test_instances_are_counted_before_anything_is_made(kernel: MdevKernel) -> None:
    """Those that the same VM asks for; a device of another's that somebody removed is not made."""
    world = World(kernel)
    world.start(guest(FIRST, name="other", cpus="8"))
    kernel._remove(FIRST)
    steps: list[str] = []
    kernel.step = lambda what: steps.append(what) if "mdev" in what else None
    with pytest.raises(IsolationError, match=r"found available_instances 3 .* 4 or more"):
        world.start(guest(SECOND, THIRD, FOURTH, FIFTH))
    assert steps == []
    world.start(guest(SECOND, THIRD, FOURTH))
    assert kernel.made() == dict.fromkeys((SECOND, THIRD, FOURTH), SMALL)


def test_a_parent_that_does_not_make_one_is_told_with_its_reason(kernel: MdevKernel) -> None:
    """Though it said that it could; nothing is left."""

    def step(what: str) -> None:
        if what.endswith("create"):
            raise OSError(errno.EIO, "injected", what)

    kernel.step = step
    world = World(kernel)
    with pytest.raises(IsolationError, match=f"guest: {FIRST}: {PARENT} did not make a {SMALL}: "):
        world.start(guest(FIRST))
    assert (kernel.made(), kernel.record) == ({}, None)


def test_a_device_that_cannot_be_removed_is_removed_later(kernel: MdevKernel) -> None:
    """It stays on record, and the next entry tries again."""
    before = effective_state(kernel)
    world = World(kernel)
    vm = guest(FIRST)
    world.start(vm)
    kernel.busy.add(FIRST)
    world.stop(vm)
    report = world.reconcile()
    assert [result.key for result in report.of(FAILED)] == [f"mdev/{FIRST}"]
    kernel.busy.clear()
    world.reconcile()
    assert (kernel.made(), kernel.record) == ({}, None)
    assert effective_state(kernel) == before


def test_a_hook_that_dies_at_any_write_leaves_nothing() -> None:
    """Two VMs share the parent; each device goes with its VM, whoever dies where."""
    deaths = 0
    for at in range(1000):
        kernel = MdevKernel()
        before = effective_state(kernel)
        world = World(kernel)
        other = guest(FIRST, name="other", cpus="8")
        world.start(other)
        kernel.step = killed_after(at)
        vm = guest(SECOND, THIRD)
        try:
            world.start(vm)
            world.stop(vm)
            is_over = True
        except Killed:
            is_over = False
            deaths += 1
            kernel.step = lambda _what: None
            world.vms.pop("guest", None)
            world._end(vm)
            world.reconcile()
        kernel.step = lambda _what: None
        assert kernel.made() == {FIRST: SMALL}, at
        world.stop(other)
        assert effective_state(kernel) == before, at
        assert kernel.record is None
        if is_over:
            break
    assert deaths > 20


def test_a_rehearsal_makes_and_removes_them(kernel: MdevKernel, tmp_path: Path) -> None:
    """In the order of a start and a stop, and none is made."""
    plant(kernel, tmp_path)
    kind = tmp_path / PARENTS / PARENT / "mdev_supported_types" / SMALL
    kind.mkdir(parents=True)
    (kind / "available_instances").write_text("2\n")
    claim, greedy = (read_claim(vm.xml) for vm in (guest(FIRST), guest(FIRST, SECOND, THIRD)))
    assert claim is not None
    assert greedy is not None
    with pytest.raises(IsolationError, match=r"found available_instances 2 .* 3 or more"):
        rehearse(greedy, str(tmp_path))
    writes = [tuple(write) for write in rehearse(claim, str(tmp_path)) if "mdev" in write.path]
    assert writes == [
        ("prepare", f"/{PARENTS}/{PARENT}/mdev_supported_types/{SMALL}/create", FIRST),
        ("release", f"/sys/bus/mdev/devices/{FIRST}/remove", "1"),
    ]
