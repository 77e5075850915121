"""The target of a VM here: the QEMU and the libvirt that are installed, and what the kernel has.

The planner uses only what the target has (``machine.target``).
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from kvmhooks.errors import LaunchError, SpecError
from kvmhooks.machine.target import (
    OLDEST_LIBVIRT,
    CpuAnswers,
    Target,
    parse_version,
    told_by,
    version_text,
)
from kvmhooks.qemu import emulator
from kvmhooks.qemu.capabilities import (
    Qemu,
    cache_directory,
    capabilities,
    libvirt_version,
)
from kvmhooks.spec.model import VmSpec

VHOST_NET: Final = Path("/dev/vhost-net")
_IO_URING_SETUP: Final = 425
"""The number of the system call on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""


def target_of(qemu: Qemu, libvirt: str | None, vhost_net: Path = VHOST_NET) -> Target:
    """Return what these programs have; ``libvirt`` is its version, None if it has no part in the
    VM.
    """
    return Target(
        qemu=parse_version(qemu.version),
        libvirt=None if libvirt is None else parse_version(libvirt),
        told=told_by(qemu.types, qemu.options),
        io_uring=qemu.io_uring and kernel_has_io_uring(),
        vhost_net=vhost_net.exists(),
        answers={"tcg": CpuAnswers(lacking=qemu.lacking, absent=frozenset(qemu.absent))},
    )


def target_for(spec: VmSpec, *, has_libvirt: bool = True) -> Target:
    """Return what is installed for the VM of ``spec``: its QEMU or the system's, and libvirt.

    A program that is not there, or does not answer, counts as the oldest that kvmhooks knows: its
    absence is told where it is started.
    """
    libvirt = libvirt_version() or version_text(OLDEST_LIBVIRT) if has_libvirt else None
    try:
        qemu = capabilities(emulator.find(spec), cache_directory())
    except (LaunchError, SpecError):
        return Target(libvirt=None if libvirt is None else parse_version(libvirt))
    return target_of(qemu, libvirt)


def kernel_has_io_uring() -> bool:
    """Return whether the kernel lets this process use io_uring: tried, as what forbids it differs.

    ``kernel.io_uring_disabled``, a seccomp filter and a kernel without it all refuse the call with
    another error than the one for the null address that is given.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(_IO_URING_SETUP, 1, None)
    if handle >= 0:
        os.close(handle)
        return True
    return ctypes.get_errno() == errno.EFAULT
