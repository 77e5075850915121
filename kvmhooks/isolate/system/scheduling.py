"""The scheduling of one thread: its class, its utilisation clamp, its core-scheduling cookie.

Classes are those of sched(7). Clamps are set by ``sched_setattr(2)`` (kernel 5.3; the structure and
its flags are in include/uapi/linux/sched/types.h and sched.h; admin-guide's scheduler page is
Documentation/scheduler/sched-util-clamp.rst). Cookies are those of ``PR_SCHED_CORE`` (kernel 5.14,
admin-guide/hw-vuln/core-scheduling.rst). glibc before 2.41 wraps neither, so the system calls are
made through ``ctypes``, which is imported for VMs that ask for them only.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

SCHEDULER: Final = "scheduler"
"""``CLASS:PRIORITY``, such as ``other:0`` and ``fifo:1``."""

UCLAMP: Final = "uclamp"
"""``MIN:MAX``, each from 0 to 1024."""

COOKIE: Final = "cookie"
"""``0`` for none, else a number that tells this cookie from others."""

NEW: Final = "new"
"""Written as a cookie of a process: one that nobody else has, for all of its threads."""

DEFAULTS: Final = {SCHEDULER: "other:0", UCLAMP: "0:1024", COOKIE: "0"}
"""The values of a thread that nobody has touched."""

_CLASSES: Final = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5, "deadline": 6}
_NAMES: Final = {number: name for name, number in _CLASSES.items()}

_CALLS: Final = {
    "x86_64": (314, 315), "aarch64": (274, 275), "riscv64": (274, 275), "loongarch64": (274, 275),
    "ppc64le": (355, 356), "s390x": (345, 346),
}  # fmt: skip
"""The numbers of ``sched_setattr`` and ``sched_getattr`` by machine (each one's syscall table)."""

_ATTR: Final = "<IIQiIQQQII"
"""``struct sched_attr`` with clamps: size, policy, flags, nice, priority, three times, min, max."""

_SIZE: Final = 56

_KEEP_ALL: Final = 0x08 | 0x10
_CLAMPS: Final = 0x20 | 0x40

_PR_SCHED_CORE: Final = 62
_GET, _CREATE, _SHARE_TO = 0, 1, 2
_THREAD, _THREAD_GROUP = 0, 1


def read(tid: int, what: str) -> str:
    """Return the value of a thread of this machine. Raises ``OSError``."""
    if what == SCHEDULER:
        number = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
        return f"{_NAMES.get(number, number)}:{os.sched_getparam(tid).sched_priority}"
    if what == UCLAMP:
        import struct  # noqa: PLC0415 -- see the module's docstring

        *_, least, most = struct.unpack(_ATTR, _get_attr(tid))
        return f"{least}:{most}"
    return str(_get_cookie(tid))


def write(tid: int, what: str, value: str) -> None:
    """Give a thread of this machine something; a cookie is taken away, or is a new one.

    The class is not inherited by what the thread starts (``SCHED_RESET_ON_FORK``): a helper that
    QEMU starts from a vCPU must not keep a CPU from others. Raises ``OSError``.
    """
    if what == SCHEDULER:
        name, _, priority = value.partition(":")
        number = _CLASSES[name] | (os.SCHED_RESET_ON_FORK if name in {"fifo", "rr"} else 0)
        os.sched_setscheduler(tid, number, os.sched_param(int(priority)))
    elif what == UCLAMP:
        import struct  # noqa: PLC0415 -- see the module's docstring

        least, _, most = value.partition(":")
        flags = _KEEP_ALL | _CLAMPS
        attr = struct.pack(_ATTR, _SIZE, 0, flags, 0, 0, 0, 0, 0, int(least), int(most))
        _call(_numbers()[0], tid, attr, 0)
    elif value == NEW:
        _prctl(_CREATE, tid, _THREAD_GROUP)
    else:  # ours is none: nothing gives a cookie to a hook, or to a daemon that runs one
        _prctl(_SHARE_TO, tid, _THREAD)


def _get_attr(tid: int) -> bytes:
    import ctypes  # noqa: PLC0415 -- see the module's docstring

    attr = ctypes.create_string_buffer(_SIZE)
    _call(_numbers()[1], tid, attr, _SIZE, 0)
    return attr.raw


def _get_cookie(tid: int) -> int:
    import ctypes  # noqa: PLC0415 -- see the module's docstring

    cookie = ctypes.c_uint64()
    _prctl(_GET, tid, _THREAD, ctypes.addressof(cookie))
    return cookie.value


def _numbers() -> tuple[int, int]:
    machine = os.uname().machine
    if machine not in _CALLS:
        raise OSError(errno.EOPNOTSUPP, f"sched_setattr: its number on {machine} is not known")
    return _CALLS[machine]


def _prctl(command: int, tid: int, scope: int, where: int = 0) -> None:
    _checked("prctl", _PR_SCHED_CORE, command, tid, scope, where)


def _call(number: int, tid: int, attr: Any, *rest: int) -> None:
    _checked("syscall", number, tid, attr, *rest)


def _checked(function: str, *arguments: Any) -> None:
    """Call a variadic function of the C library; every number is as wide as a register."""
    import ctypes  # noqa: PLC0415 -- see the module's docstring

    library = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(library, function)(*wide) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{function} {arguments[0]}")
