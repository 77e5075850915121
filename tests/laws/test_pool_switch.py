"""The switch of a card's functions is back, at whichever write a hook dies or fails."""

from __future__ import annotations

import contextlib
import errno
from itertools import product
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import IsolationError
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel, nothing
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, Killed, World, effective_state

if TYPE_CHECKING:
    from collections.abc import Callable

PF = "0000:05:00.0"
POLICY = BINDS.replace("managed=", f'pools="{PF}=3" managed=')


def a_card() -> Kernel:
    """Return a host whose card may have eight functions and has none; its driver takes them."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    return kernel


def guest(name: str, cpus: str = "6-7") -> GivenVm:
    """A VM that asks for a pool and has none of its functions."""
    return GivenVm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), (), POLICY)


@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "injected")])
@pytest.mark.parametrize("dying", [range(8), range(14, 26)], ids=["prepare", "release"])
def test_the_switch_survives_a_hook_that_dies_and_one_that_fails(
    dying: range, error: BaseException
) -> None:
    """One makes a pool or gives it back, the next makes it again: the host has all back."""
    for first, second in product(dying, range(8)):
        kernel = a_card()
        world, before = World(kernel), effective_state(kernel)
        last, new = guest("one"), guest("two", "8")
        if dying.start:
            world.start(last)
        kernel.step = ending(first, Killed())
        with contextlib.suppress(Killed):
            if dying.start:
                world.stop(last)
            else:
                world.call(last, "prepare", "begin")
        kernel.step = ending(second, error)
        with contextlib.suppress(Killed, IsolationError, OSError):
            world.start(new)
        kernel.step = nothing
        if new.name in world.vms:
            world.stop(new)
        world.call(last, "release", "end")
        world.reconcile()
        assert (effective_state(kernel), kernel.record) == (before, None), (first, second)


def ending(at: int, error: BaseException) -> Callable[[str], None]:
    """Return a step that fails after so many; of a hook that dies every later one fails, too."""
    left = iter(range(at))
    done: list[str] = []

    def step(what: str) -> None:
        if next(left, None) is None and (isinstance(error, Killed) or not done):
            done.append(what)
            raise error

    return step
