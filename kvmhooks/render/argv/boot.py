"""What the machine starts: firmware, and a kernel given directly."""

from __future__ import annotations

from kvmhooks.placement.model import Plan


def arguments(plan: Plan) -> list[str]:
    """The ROM image unless it is QEMU's own SeaBIOS, then the kernel and what belongs to it."""
    boot = plan.spec.boot
    given = {
        "-bios": None if boot.firmware == "bios" else boot.firmware,
        "-kernel": boot.kernel,
        "-initrd": boot.initrd,
        "-append": boot.cmdline,
    }
    return [
        word
        for option, value in given.items()
        if value is not None
        for word in (option, str(value))
    ]
