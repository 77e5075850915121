"""The start of the machine: firmware, and a kernel given directly."""

from __future__ import annotations

from kvmhooks.machine.arguments import option
from kvmhooks.machine.firmware import firmware_of
from kvmhooks.placement.model import Plan


def arguments(plan: Plan) -> list[str]:
    """Return OVMF or the ROM image, unless it is QEMU's own SeaBIOS; then the kernel."""
    boot = plan.spec.boot
    given = {
        "-bios": None if boot.firmware in {"bios", "uefi"} else boot.firmware,
        "-kernel": boot.kernel,
        "-initrd": boot.initrd,
        "-append": boot.cmdline,
    }
    return [
        *_pflash(plan),
        *(
            word
            for name, value in given.items()
            if value is not None
            for word in (name, str(value))
        ),
    ]


def _pflash(plan: Plan) -> list[str]:
    """Return OVMF's code, which the guest cannot write, and the variables, which it can.

    With secure boot it can only in system management mode (docs/system/i386/pc.rst and OVMF's own
    README).
    """
    firmware = firmware_of(plan.spec)
    if firmware is None:
        return []
    words: list[str] = []
    for name, path in (("pflash0", firmware.code), ("pflash1", firmware.variables)):
        readonly = name == "pflash0"
        file = {"driver": "file", "filename": str(path), "node-name": f"{name}-storage"}
        image = {"driver": "raw", "node-name": f"{name}-format", "file": f"{name}-storage"}
        discard = {"auto-read-only": True, "discard": "unmap"}
        words += option("blockdev", {**file, **discard})
        words += option("blockdev", {**image, "read-only": readonly})
    if plan.spec.boot.secure_boot:
        words += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return words
