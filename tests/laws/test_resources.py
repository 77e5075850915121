"""Resources of every kind: claims and records that JSON knows, and a host that has all back."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmhooks.cli.status import held_things
from kvmhooks.errors import IsolationError, KvmhooksError
from kvmhooks.isolate.claims import format_1
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand, Origin
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand, HugePagePool
from kvmhooks.isolate.kinds.kind import KINDS, Acquisition, Demand, from_settings, to_settings
from kvmhooks.isolate.kinds.mdevs import MdevDemand, Mediated
from kvmhooks.isolate.kinds.vf_pools import VfPool, VfPoolDemand
from kvmhooks.isolate.kinds.vf_powers import VfSettings, VfSettingsDemand
from kvmhooks.isolate.record import json as notation
from kvmhooks.isolate.record.state import FORMAT, Held, State
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, Pool, nothing
from tests.isolate_model.mdev import MdevKernel
from tests.isolate_model.pci import Function
from tests.isolate_model.world import (
    BINDS,
    ISOLATION,
    PAGES,
    GivenVm,
    Killed,
    PagedVm,
    Vm,
    World,
    effective_state,
)

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
NUMBERS = st.integers(0, 1 << 20)
ADDRESSES = st.builds("0000:{:02x}:{:02x}.{}".format, st.integers(0, 255), st.integers(0, 31),
                      st.integers(0, 7))  # fmt: skip
UUIDS = st.uuids().map(str)
PROCESSES = st.builds(Process, NUMBERS, NUMBERS)
WAITS = st.none() | PROCESSES
WORDS = st.dictionaries(
    st.sampled_from(["mac", "vlan", "trust", "rate"]),
    st.sampled_from(["yes", "no", "5", "52:54:00:12:34:56"]),
    min_size=1,
)
PF, FIRST = "0000:05:00.0", "0000:05:02.0"
CPUS = CpuSet({6, 7}), CpuSet({0, 1})
MDEV = "c0d5a2b0-0000-4000-8000-000000000001"
ALLOW = ["mounted", "route"]
CHANGES = st.just((None, None)) | st.tuples(NUMBERS, NUMBERS)

DEMANDS: dict[str, st.SearchStrategy[Demand]] = {
    "hugepages": st.builds(HugePageDemand, st.integers(-1, 9), NUMBERS, NUMBERS),
    "vfs": st.builds(VfPoolDemand, ADDRESSES, NUMBERS),
    "vf_settings": st.builds(VfSettingsDemand, ADDRESSES, NUMBERS, WORDS),
    "functions": st.builds(FunctionDemand, ADDRESSES, st.just(ALLOW)),
    "mdevs": st.builds(MdevDemand, UUIDS, ADDRESSES, st.sampled_from(["nvidia-35", "i915-GVTg"])),
}

ANY_DEMAND: st.SearchStrategy[Demand] = st.one_of(*DEMANDS.values())

SEVERAL = st.lists(ANY_DEMAND, max_size=6, unique_by=lambda demand: (demand.KIND, demand.key))
"""Each thing is asked for once."""

KEYS: dict[str, st.SearchStrategy[str]] = {
    "hugepages": st.builds("{}/{}".format, st.integers(-1, 9), NUMBERS),
    "vfs": ADDRESSES,
    "vf_settings": st.builds("{}/{}".format, ADDRESSES, NUMBERS),
    "functions": ADDRESSES,
    "mdevs": UUIDS,
}
NO_KEYS = {
    "hugepages": ["", "x", "0", "0/", "x/4", "00/4", "0/04", "0/4/1"],
    "vfs": ["", "../x"],
    "vf_settings": ["", "0000:05:00.0", "0000:05:00.0/", "/0", "0000:05:00.0/x", "a/-1", "a/1/1"],
    "functions": ["", "../x"],
    "mdevs": ["", "../x"],
}

ACQUISITIONS: dict[str, st.SearchStrategy[Acquisition]] = {
    "hugepages": st.builds(
        lambda owed, shares, change: HugePagePool(owed, shares, *change),
        NUMBERS, st.dictionaries(st.sampled_from(["qemu-a", "qemu-b"]), NUMBERS), CHANGES,
    ),
    "vfs": st.builds(VfPool, NUMBERS, TEXTS, identity=TEXTS, made=NUMBERS, waits=WAITS),
    "vf_settings": st.builds(VfSettings, TEXTS, WORDS, WORDS, WAITS),
    "functions": st.builds(Origin, TEXTS, TEXTS, identity=TEXTS, waits=WAITS),
    "mdevs": st.builds(Mediated, TEXTS, TEXTS, waits=WAITS),
}  # fmt: skip


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    """A claim with any resources."""
    return Claim(
        driver=draw(st.sampled_from(["qemu", "kvm-launch"])),
        uuid=draw(UUIDS),
        name=draw(TEXTS),
        exclusive=CpuSet(draw(st.sets(st.integers(0, 99)))),
        strict=draw(st.booleans()),
        settings=draw(st.sampled_from([(), (("power.governor", "performance"),)])),
        devices=tuple(draw(st.lists(ADDRESSES, max_size=2))),
        demands=draw(SEVERAL),
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    """A record with any claims, and with anything acquired for them."""
    state = State("boot")
    for claim in draw(st.lists(claims(), max_size=3)):
        state.held[claim.key] = Held(claim, holder=draw(PROCESSES))
    for claim in draw(st.lists(claims(), max_size=1)):
        state.reserved[claim.key] = claim, draw(NUMBERS)
    for kind, acquisition in ACQUISITIONS.items():
        table = draw(st.dictionaries(KEYS[kind], acquisition, max_size=2))
        if table:
            state.resources[kind] = table
    return state


def facts(state: State) -> object:
    """Return all of a record that can be compared."""
    held = {key: vm.to_json() for key, vm in state.held.items()}
    reserved = {key: (claim.to_json(), until) for key, (claim, until) in state.reserved.items()}
    return held, reserved, state.resources


def test_the_tables_here_have_every_kind() -> None:
    """A kind that is new is in all of them, or its laws are none."""
    for table in (DEMANDS, ACQUISITIONS, KEYS, NO_KEYS, STORIES, {*SHARED, *BESIDE}):
        assert {*table} == {*KINDS}


@given(claims())
def test_a_claim_with_any_resources_survives_json(claim: Claim) -> None:
    """It is equal, also after the form of the version before."""
    document = claim.to_json()
    assert Claim.from_json(document) == claim
    old = format_1.downgraded(document)
    assert old["format"] == 1
    assert Claim.from_json(old) == claim


@given(claims())
def test_metadata_asks_for_what_a_claim_asks_for(claim: Claim) -> None:
    """The attributes are made of demands, and demands of them."""
    asked = {kind: several for kind, several in claim.demands.items() if KINDS[kind].setting}
    words = to_settings(claim.demands)
    assert words.keys() == {KINDS[kind].setting for kind in asked}
    assert [*from_settings(words)] == [demand for several in asked.values() for demand in several]
    assert words == {}


@given(states())
def test_a_record_of_any_resources_survives_its_text(state: State) -> None:
    """All that was acquired is read back, by its kind."""
    read = State.from_text(state.to_text(), "boot")
    assert (facts(read), read.form) == (facts(state), FORMAT)


@given(states())
def test_a_record_of_the_version_before_survives_its_text(state: State) -> None:
    """It stays one, and says the same; shares of pages are of claims that are held."""
    state.form = 2
    pools = state.acquired(HugePagePool)
    for at, pool in list(pools.items()):
        pool.shares = {key: count for key, count in pool.shares.items() if key in state.held}
        if pool.is_over:
            del pools[at]
    if not pools:
        del state.resources[HugePagePool.KIND]
    read = State.from_text(state.to_text(), "boot")
    assert (facts(read), read.form) == (facts(state), 2)


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, keys in NO_KEYS.items() for key in keys]
)
@given(data=st.data())
@settings(max_examples=3)
def test_a_record_with_a_key_that_is_none_is_refused(
    data: st.DataObject, kind: str, key: str
) -> None:
    """Somebody edited it: one error with the file and what stands there."""
    state = State("boot")
    state.resources[kind] = {key: data.draw(ACQUISITIONS[kind])}
    with pytest.raises(IsolationError) as caught:
        State.from_text(state.to_text(), "boot")
    assert str(caught.value).startswith(
        f"/run/kvmhooks/state.json: ValueError: {kind}: found {key!r}, expected "
    )


@given(claims(), st.sampled_from(["held", "reserved"]), st.sampled_from([None, {}, {"format": 9}]))
def test_a_record_with_a_claim_that_is_none_is_told_with_its_file(
    claim: Claim, at: str, instead: object
) -> None:
    """The error is one, wherever the claim stands."""
    state = State("boot")
    state.held[claim.key] = Held(claim, holder=Process(1, 1))
    state.reserved[claim.key] = claim, 1
    document = json.loads(state.to_text())
    entry = document["held"][claim.key] if at == "held" else document["reserved"][0]
    entry["claim" if at == "held" else 0] = instead
    with pytest.raises(IsolationError, match=r"^/run/kvmhooks/state.json: ValueError: claim: "):
        State.from_text(notation.to_text(document), "boot")


NO_TYPE = {"uuid": MDEV, "parent": PF, "type": None}
NOT_HANDED_IN: dict[str, tuple[str, object, str]] = {
    "a setting that is none": ("settings", {"": "x"}, ": no such setting; did you mean "),
    "a value that is none": ("settings", {"memory.ksm": "9"}, "memory.ksm: found '9', expected"),
    "a use that is none": ("settings", {"devices.allow": "x"}, "devices.allow: found 'x'"),
    "pools of none": ("settings", {"devices.pools": ""}, "devices.pools: found '', expected"),
    "a function twice": (
        "settings", {"devices.functions": f"{PF}/0 vlan=5;{PF}/0 rate=6"}, f"{PF}/0 twice",
    ),
    "pages below none": ("hugepages", [{"node": 0, "size_kib": 4, "count": -1}], "count: found -1"),
    "a node below any": ("hugepages", [{"node": -2, "size_kib": 4, "count": 1}], "node: found -2"),
    "true pages": ("hugepages", [{"node": 0, "size_kib": 4, "count": True}], "count: found True"),
    "a part of a page": ("hugepages", [{"node": 0, "size_kib": 4, "count": 1.5}], "found 1.5"),
    "strict by a word": ("strict", "no", "strict: found 'no', expected true or false"),
    "a disk alone": ("disks", "sda", "disks: found 'sda', expected a list"),
    "an earlier format": ("format", 0, "format: found 0, expected 1 or 2"),
    "a true format": ("format", True, "format: found True, expected 1 or 2"),
}  # fmt: skip


@pytest.mark.parametrize(
    "resources", [{"": ""}, {"x": []}, {"vfs": {}}, {"vfs": ""}, "vfs", [], {"mdevs": [NO_TYPE]}]
)
def test_a_claim_with_resources_of_no_kind_is_refused(resources: object) -> None:
    """Also where there are none of it."""
    document = Claim(driver="qemu", uuid=MDEV, name="a", exclusive=CPUS[0]).to_json()
    Claim.from_file(document)
    with pytest.raises(IsolationError, match=r"^claim: [A-Z]"):
        Claim.from_file(document | {"resources": resources})


@pytest.mark.parametrize("name", ["devices.allow", "devices.pools", "devices.functions"])
def test_a_claim_has_no_resources_among_its_settings(name: str) -> None:
    """Nothing would come of them in this format."""
    document = a_claim().to_json()
    document["settings"][name] = f"{PF}=9"
    with pytest.raises(IsolationError, match=f"^claim: settings: found {name}, expected it under"):
        Claim.from_file(document)


@pytest.mark.parametrize("case", NOT_HANDED_IN)
def test_a_claim_that_no_vm_makes_is_not_handed_in(case: str) -> None:
    """One error with what was found and expected; all that is as it should be is taken."""
    key, value, message = NOT_HANDED_IN[case]
    good = format_1.downgraded(a_claim().to_json())
    assert Claim.from_file(good) == Claim.from_file(a_claim().to_json()) == a_claim()
    with pytest.raises(IsolationError) as caught:
        Claim.from_file(good | {key: value, "bound": [FIRST]})
    assert str(caught.value).startswith("claim: ")
    assert message in str(caught.value)


def a_claim() -> Claim:
    """Return a claim with something of each kind."""
    return Claim(
        driver="qemu",
        uuid=MDEV,
        name="guest",
        exclusive=CPUS[0],
        settings=(("memory.ksm", "0"),),
        demands=[
            HugePageDemand(-1, 0, 1),
            VfPoolDemand(PF, 3),
            VfSettingsDemand(PF, 0, {"vlan": "5"}),
            FunctionDemand(FIRST, ["route"]),
            MdevDemand(MDEV, PF, "nvidia-35"),
        ],
    )


# --- acquired and given back --------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A host, and a VM that has something of one kind."""

    host: Callable[[], Kernel]
    vm: Callable[[], Vm]


def with_pages() -> Kernel:
    """Return a host that finds pages by compaction alone."""
    kernel = Kernel("plain", 16, 2)
    kernel.files["sys/devices/system/node/node0/compact"] = ""
    kernel.pools[PAGES] = Pool(total=10, used=8, limit=40, compacted=180)
    return kernel


def with_card(count: int = 0) -> Kernel:
    """Return a host with a card that has so many virtual functions."""
    kernel = Kernel("plain", 16, 2)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    if count:
        kernel.pci.write(f"sys/bus/pci/devices/{PF}/sriov_numvfs", str(count))
    return kernel


def with_nic() -> Kernel:
    """Return a host with a network card that has a driver and an override."""
    kernel = Kernel("plain", 16, 2)
    kernel.pci.plug(PF, Function(7, "e1000e", ("e1000e",), override="e1000e"))
    return kernel


def asking(devices: str) -> GivenVm:
    """Return a VM whose metadata asks for devices."""
    return GivenVm("guest", *CPUS, (), f"{ISOLATION}<kvmhooks:devices {devices}/>")


STORIES = {
    "hugepages": Story(with_pages, lambda: PagedVm("guest", *CPUS, pages=64)),
    "vfs": Story(with_card, lambda: asking(f'pools="{PF}=3"')),
    "vf_settings": Story(
        lambda: with_card(2), lambda: asking(f'functions="{PF}/0 vlan=5 trust=yes"')
    ),
    "functions": Story(with_nic, lambda: GivenVm("guest", *CPUS, [PF], BINDS)),
    "mdevs": Story(MdevKernel, lambda: asking(f'mdevs="{MDEV}={MdevKernel.PARENT}/nvidia-35"')),
}


SHARED = {"hugepages", "vfs"}
"""Kinds of which several VMs may have the same thing."""

BESIDE: dict[str, list[tuple[str, list[str]]]] = {
    "vf_settings": [
        (f'functions="{PF}/0 vlan=7"', []),
        (f'functions="{PF}/0 rate=9" managed="yes"', [FIRST]),
        ('managed="yes"', [FIRST]),
    ],
    "functions": [('managed="yes"', [PF])],
    "mdevs": [(f'mdevs="{MDEV}={MdevKernel.PARENT}/nvidia-35"', [])],
}
"""Of what a story's VM has: the metadata and the devices of others that would take it."""


def all_of(kernel: Kernel) -> tuple[object, ...]:
    """Return everything of a host that is to be as before."""
    made = kernel.made() if isinstance(kernel, MdevKernel) else {}
    pages = {at: pool.total for at, pool in kernel.pools.items()}
    return effective_state(kernel), kernel.pci.state(), made, pages


def check_all_back(kernel: Kernel, before: tuple[object, ...]) -> None:
    """Check that a host is as before, and that nothing is on record."""
    assert all_of(kernel) == before
    assert kernel.record is None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_acquired_is_given_back_exactly(kind: str) -> None:
    """One VM has it, the host differs, and is as before when it has ended."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    before, world = all_of(kernel), World(kernel)
    world.start(vm)
    (held,) = world.state.held.values()
    assert [*held.claim.demands] == [kind]
    assert [*world.state.resources] == [kind]
    assert all_of(kernel) != before
    world.stop(vm)
    check_all_back(kernel, before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hugepages"])
def test_a_device_that_is_held_is_told_by_status(kind: str) -> None:
    """By its address or name, and whose it is, as a document and to a person."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    world = World(kernel)
    world.start(vm)
    (key,) = world.state.resources[kind]
    document = held_things(world.registry, world.state)
    (row,) = [row for rows in document.values() for row in rows if key in dict(row).values()]
    assert row["by"] in ("guest", ["guest"])
    assert len([line for line in world.told().split("\n") if key in line]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_the_version_before_is_given_back(kind: str) -> None:
    """After an upgrade its VM goes on, and ends as others do; the next record is of this format."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    before, world = all_of(kernel), World(kernel)
    world.start(vm)
    old = world.state
    old.form = 2
    kernel.record = old.to_text()
    world.reconcile()
    assert (facts(world.state), world.state.form) == (facts(old), 2)
    world.stop(vm)
    check_all_back(kernel, before)
    world.start(vm)
    assert world.state.form == FORMAT


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - SHARED))
def test_what_is_one_vms_alone_is_refused_beside_it(kind: str) -> None:
    """Another VM that asks for the same in any way changes neither the host nor the record."""
    for devices, addresses in BESIDE[kind]:
        kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
        world = World(kernel)
        world.start(vm)
        here, record = all_of(kernel), kernel.record
        policy = f"{ISOLATION}<kvmhooks:devices {devices}/>"
        other = GivenVm("other", CpuSet({8, 9}), CPUS[1], addresses, policy)
        with pytest.raises(
            IsolationError, match=r"^other: .*: it is guest's: stop that, or choose"
        ):
            world.start(other)
        assert (all_of(kernel), kernel.record) == (here, record)
        world.stop(vm)


class Failing:
    """A step that fails once, and counts."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0

    def __call__(self, what: str) -> None:
        """Raise where it is time."""
        self.seen += 1
        if self.seen == self.at + 1:
            raise OSError(errno.EIO, f"injected: {what}")


class Killing(Failing):
    """A step at which the hook dies; nothing of it has any effect after it."""

    def __call__(self, what: str) -> None:
        """Die where it is time, and ever after."""
        self.seen += 1
        if self.seen > self.at:
            raise Killed(what)


def writes_of(kind: str) -> Iterator[tuple[int, Kernel]]:
    """Yield the host after a VM's life of which one write failed, for each of them in turn."""
    for at in range(1000):
        kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
        before, world = all_of(kernel), World(kernel)
        kernel.step = failing = Failing(at)
        with contextlib.suppress(KvmhooksError, OSError):
            world.start(vm)
        with contextlib.suppress(KvmhooksError, OSError):
            if vm.name in world.vms:
                world.stop(vm)
        kernel.step = nothing
        world.reconcile()
        assert all_of(kernel) == before, f"write {at}"
        yield at, kernel
        if failing.seen <= at:
            return


@pytest.mark.parametrize("kind", KINDS)
def test_any_write_may_fail_once(kind: str) -> None:
    """The start is refused or the stop is incomplete; `reconcile` gives back what is left."""
    count = 0
    for count, kernel in writes_of(kind):
        assert kernel.record is None, f"write {count}"
    assert count > 10


def another(vm: Vm) -> Vm:
    """Return a VM that asks for the same as another one, with CPUs of its own."""
    vm.name, vm.uuid, vm.cpus = "another", MDEV, CpuSet({8, 9})
    return vm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_known", [True, False], ids=["again", "another"])
@pytest.mark.parametrize("has_daemon", [True, False], ids=["hook", "daemon"])
def test_a_start_after_one_that_was_killed(kind: str, *, is_known: bool, has_daemon: bool) -> None:
    """Its hook dies at any write, its daemon with it or not; before its `release` the same VM or
    another asks for the same, gets it or is refused, and ends: the host has all back."""
    for at in range(1000):
        kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
        before, world = all_of(kernel), World(kernel)
        world.serial = vm.serial = 1
        kernel.step = killing = Killing(at)
        with contextlib.suppress(Killed):
            world.call(vm, "prepare", "begin")
        kernel.step = nothing
        if not has_daemon:
            world.restart_libvirtd()
        later = vm if is_known else another(STORIES[kind].vm())
        with contextlib.suppress(KvmhooksError):
            world.start(later)
        if not is_known:
            world.call(vm, "release", "end")
        if later.name in world.vms:
            world.stop(later)
        world.reconcile()
        kept = slice(None if has_daemon else 1, None)  # a new daemon is another task
        assert (all_of(kernel)[kept], kernel.record) == (before[kept], None), f"write {at}"
        if killing.seen <= at:
            assert at > 2
            return


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_that_is_given_up_meanwhile_gets_nothing(kind: str) -> None:
    """`kvmhooks undo` while the pages are sought or a driver hesitates: nothing is left."""
    kernel, vm = STORIES[kind].host(), STORIES[kind].vm()
    before, world = all_of(kernel), World(kernel)
    undone: list[str] = []

    def step(what: str) -> None:
        if kernel.record is not None and world.state.resources.get(kind) and not undone:
            undone.append(what)
            kernel.step = nothing
            state = world.state
            state.held.clear()
            kernel.record = state.to_text()

    kernel.step = step
    with contextlib.suppress(IsolationError):
        world.start(vm)
    if vm.name in world.vms:
        world.stop(vm)
    kernel.step = nothing
    world.reconcile()
    assert undone
    check_all_back(kernel, before)


def test_pages_that_were_in_use_are_given_back_by_another_vms_follower() -> None:
    """QEMU's pages are not all free yet when it has ended; nobody else comes for hours."""
    kernel = with_pages()
    world = World(kernel)
    other, vm = Vm("other", CpuSet({9}), CPUS[1]), STORIES["hugepages"].vm()
    world.start(other)
    world.start(vm)
    kernel.pools[PAGES].used += 64
    world.stop(vm)
    assert kernel.pools[PAGES].total == 72
    kernel.pools[PAGES].used -= 64
    assert world.registry.follow(other.key, Process(other.pid, 0)) is not None
    assert kernel.pools[PAGES].total == 10
    assert world.state.resources == {}
