"""A plan as QEMU's arguments (https://www.qemu.org/docs/master/system/invocation.html).

Objects and devices are written as JSON, QEMU's own form of them: no value can escape from it, as
a comma can from ``key=value``.
"""

from __future__ import annotations

from kvmhooks.placement.model import Plan
from kvmhooks.qemu.argv import (
    boot,
    console,
    cpu,
    devices,
    disks,
    machine,
    memory,
    nets,
    pci,
    security,
)

EMULATOR = "qemu-system-x86_64"

CONCERNS = (
    machine.arguments,
    cpu.arguments,
    memory.arguments,
    security.arguments,
    boot.arguments,
    devices.iommu,
    pci.arguments,
    memory.added,
    disks.arguments,
    nets.arguments,
    console.arguments,
    devices.channels,
    devices.plugged,
    devices.screen_and_sound,
    pci.passed_through,
    devices.arguments,
)
"""Every concern, in the order in which QEMU reads them: a bus before what is plugged into it."""


def qemu_argv(plan: Plan) -> list[str]:
    """Return QEMU's argument list for ``plan``, the program first.

    It describes the machine and nothing else: run it by hand, and the console is on its standard
    output. ``kvm-launch`` adds what it controls QEMU with.
    """
    emulator = plan.spec.machine.emulator
    words = [EMULATOR if emulator is None else str(emulator)]
    for concern in CONCERNS:
        words += concern(plan)
    return words
