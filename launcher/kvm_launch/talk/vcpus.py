"""The vCPUs that a QEMU has now, and what its emulation does when one is taken from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kvmhooks.errors import PlanError
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from kvmhooks.placement import Plan
    from kvmhooks.qemu.qmp import Monitor

Version = tuple[int, int, int]

ANSWER_SECONDS: Final = 5.0
"""The time that QEMU may take to tell what it has."""

MENDED: Final = ((10, 0, 5), (10, 1, 1))
"""Since when the emulation (TCG) survives that a vCPU is unplugged, in each branch that was mended.

Before, what it has registered with the memory map stays when the vCPU is freed, and is called at
the next change of the map: when the guest resets, or its memory is about to be migrated. QEMU ends
with SIGSEGV then. KVM registers nothing of the kind (``cpu_address_space_init()``,
softmmu/physmem.c; commit 300a87c502 «physmem: Destroy all CPU AddressSpaces on unrealize»).
"""

CRASH: Final = (
    "a QEMU that emulates the CPU crashes after that, once its guest resets or migrates (mended in "
    "10.0.5 and 10.1.1)"
)


_LEVELS: Final = ("socket-id", "die-id", "module-id", "core-id", "thread-id")

_SLOT: Final = {
    "type": str,
    "*qom-path": str,
    "props": {f"*{level}": int for level in _LEVELS},
}
"""``HotpluggableCPU`` (qapi/machine.json)."""


async def slots_of(monitor: Monitor) -> list[Mapping[str, Any]]:
    """Return QEMU's places for vCPUs by their numbers; who is there has a ``qom-path``."""
    found = await monitor.execute("query-hotpluggable-cpus", seconds=ANSWER_SECONDS, shape=[_SLOT])
    return list(by_place(found))


def there(slots: Sequence[Mapping[str, Any]]) -> CpuSet:
    """Return the numbers of the vCPUs that are there."""
    return CpuSet(at for at, slot in enumerate(slots) if "qom-path" in slot)


def by_place(slots: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return QEMU's places for vCPUs in the order of their numbers.

    The number of an x86 vCPU follows from its place (``x86_possible_cpu_arch_ids()``,
    hw/i386/x86-common.c); the answer's own order is the reverse.
    """
    return sorted(slots, key=lambda slot: [slot["props"].get(level, 0) for level in _LEVELS])


async def version_of(monitor: Monitor) -> Version:
    """Return the version of a QEMU that runs."""
    shape = {"qemu": {"major": int, "minor": int, "micro": int}}
    answer = await monitor.execute("query-version", seconds=ANSWER_SECONDS, shape=shape)
    found = answer["qemu"]
    return found["major"], found["minor"], found["micro"]


def check_unplug(plan: Plan, version: Version, *, found: int, count: int) -> None:
    """Raise ``PlanError`` where to unplug vCPUs, ``found`` down to ``count``, would cost the VM."""
    if count < found and not survives_unplug(plan.accel, version):
        this = ".".join(map(str, version))
        raise PlanError(
            "vcpus", str(count), f"at least {found}, as there are: {CRASH}, and this is {this}"
        )


def survives_unplug(accel: str, version: Version) -> bool:
    """Return whether a QEMU goes on when its memory map changes after a vCPU was unplugged."""
    if accel != "tcg" or version >= MENDED[-1]:
        return True
    return any(version[:2] == first[:2] and version >= first for first in MENDED)
