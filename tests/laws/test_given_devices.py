"""Any devices in any groups, VMs that come and go in any order: the host has all back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, World, effective_state

DRIVERS = ("", "e1000e", "nvme", "vfio-pci", "pci-stub")
CARD = "0000:09:00.0"


@dataclass(frozen=True)
class Story:
    """A host's devices, what each VM asks for, and who starts or stops when."""

    functions: tuple[Function, ...]
    vms: tuple[tuple[frozenset[int], int], ...]
    """The devices of each VM, and how many virtual functions it asks of the card."""
    steps: tuple[int, ...]
    """The VM that starts, or stops if it runs."""


@st.composite
def functions(draw: st.DrawFn) -> Function:
    """A device with or without a driver, whose driver may not take it back at once."""
    driver = draw(st.sampled_from(DRIVERS))
    return Function(
        draw(st.one_of(st.none(), st.integers(0, 3))),
        driver,
        tuple(draw(st.sets(st.sampled_from(("e1000e", "nvme")), max_size=2))),
        override=draw(st.sampled_from(("", "e1000e", "vfio-pci", driver))),
        class_=draw(st.sampled_from(("0x020000", "0x010802", "0x060400"))),
        refuses=draw(st.sets(st.sampled_from(("vfio-pci",)), max_size=1)),
    )


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Up to five devices and three VMs."""
    devices = draw(st.lists(functions(), min_size=1, max_size=5))
    asked = st.frozensets(st.integers(0, len(devices) - 1), max_size=3)
    vms = draw(st.lists(st.tuples(asked, st.integers(0, 3)), min_size=1, max_size=3))
    steps = draw(st.lists(st.integers(0, len(vms) - 1), max_size=8))
    return Story(tuple(devices), tuple(vms), tuple(steps))


def check_running(kernel: Kernel, world: World) -> None:
    """Every device of a VM waits for it, and nothing of the host is beside it in its group."""
    held = [entry.claim for entry in world.state.held.values()]
    bound = [address for claim in held for address in claim.asks_of("functions")]
    assert len(bound) == len(set(bound))
    for claim in held:
        groups = {kernel.pci.functions[address].group for address in claim.asks_of("functions")}
        for address, function in kernel.pci.functions.items():
            if address in claim.asks_of("functions"):
                assert function.driver == "vfio-pci"
            elif function.group in groups and not function.class_.startswith("0x06"):
                assert function.driver in {"", "vfio-pci", "pci-stub"}
                assert address not in bound


@given(stories())
@settings(max_examples=300, deadline=None)
def test_whoever_comes_and_goes_the_host_has_its_devices_back(story: Story) -> None:
    """A start that is refused changes nothing; after the last stop all is as it was."""
    kernel = Kernel("plain", 8, 1)
    kernel.pci.plug(CARD, Function(9, "ice", ("ice",), total=4))
    addresses = [f"0000:0{at}:00.0" for at in range(1, 1 + len(story.functions))]
    for address, function in zip(addresses, story.functions, strict=True):
        kernel.pci.plug(address, function)
    world = World(kernel)
    before = effective_state(kernel)
    vms = []
    for at, (asked, count) in enumerate(story.vms):
        pools = f'pools="{CARD}={count}" functions="{CARD}/{count - 1} vlan={at + 1}" '
        policy = BINDS.replace("managed=", f"{pools if count else ''}managed=")
        devices = [addresses[name] for name in sorted(asked)]
        devices += [f"{CARD[:-4]}02.{count - 1}"] if count else []
        vms.append(GivenVm(f"vm{at}", CpuSet({at + 2}), CpuSet({0}), devices, policy))
    for step in story.steps:
        vm = vms[step]
        if vm.name in world.vms:
            world.stop(vm)
        else:
            here = effective_state(kernel)
            with contextlib.suppress(IsolationError):
                world.start(vm)
            assert vm.name in world.vms or effective_state(kernel) == here
        check_running(kernel, world)
    for left in list(world.vms.values()):
        world.stop(left)
    assert effective_state(kernel) == before
    assert kernel.record is None
