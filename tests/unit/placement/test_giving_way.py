"""Shared vCPUs give way to VMs that are planned after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.placement import plan_all
from kvmhooks.spec import VmSpec, parse_vm
from tests.golden.cases import golden_host

FLOATING = 'name = "fl"\ncpu = { vcpus = 4, ratio = 1 }\nmemory.size = "1GiB"\n'


def big(*, exclusive: bool = True) -> str:
    """Three of the four cores of each node."""
    alone = str(exclusive).lower()
    return (
        'name = "big"\ncpu = { vcpus = 12, placement = "dedicated" }\nmemory.size = "1GiB"\n'
        f"isolation.exclusive = {alone}\n"
    )


def specs(*texts: str) -> list[VmSpec]:
    """The VMs of these files."""
    return [parse_vm(text, folder=Path("/vms")) for text in texts]


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_vm_that_floats_leaves_a_later_one_its_own(
    order: tuple[int, int], *, exclusive: bool
) -> None:
    """Planned first it has the CPUs that it has planned last: one for each vCPU, as it asks."""
    both = specs(FLOATING, big(exclusive=exclusive))
    together = plan_all([both[at] for at in order], golden_host("server"))
    by_name = {made.name: made for made in together.plans}
    assert [str(pin.cpus) for pin in by_name["fl"].vcpus] == ["0,8", "0,8", "4,12", "4,12"]
    assert str(by_name["fl"].emulator) == "0,4,8,12"
    assert str(by_name["big"].dedicated_cpus) == "1-3,5-7,9-11,13-15"


def test_who_leaves_too_little_is_refused() -> None:
    """By the name of the VM that would not have its ratio, and with what it lacks."""
    one_cell = f"{FLOATING}memory.cells = 1\n"
    together = plan_all(specs(one_cell, big()), golden_host("server"))
    assert [made.name for made in together.plans] == ["fl"]
    assert together.is_proven
    text = str(together.refused["big"])
    assert text.startswith("cpu.vcpus: found 12 dedicated, which leave too little for fl, ")
    assert "fl: memory.cells: found cell 0" in text


def test_a_ratio_is_kept_beside_others_that_float() -> None:
    """Eight vCPUs that share with nobody, and eight more without a word: on another node."""
    alone = FLOATING.replace("vcpus = 4", "vcpus = 8") + "memory.cells = 1\n"
    more = alone.replace("fl", "more").replace(", ratio = 1", "") + 'memory.nodes = "0"\n'
    together = plan_all(specs(alone, more), golden_host("server"))
    assert {made.name: made.cells[0].node for made in together.plans} == {"fl": 1, "more": 0}
