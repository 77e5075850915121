"""What libvirt runs: ``qemu GUEST OPERATION SUB-OPERATION EXTRA``, with the domain's XML on stdin.

https://libvirt.org/hooks.html. libvirt holds the VM while this runs, shows stderr only when the
exit code is not 0, and takes stdout as new XML in two operations. A guest that is none of ours must
cost no more than the start of the interpreter: nothing but ``os`` and ``sys`` is imported before
that is known.
"""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmhooks.isolate.engine import Report
    from kvmhooks.isolate.keeper import Keeper

MARK = b"urn:kvmhooks:1"
MAX_STDIN = 64 << 20
"""What is read of stdin at most; libvirt must not be left with a full pipe."""


class Operation(NamedTuple):
    """One row of libvirt's table."""

    method: str
    """The method of ``kvmhooks.isolate.keeper.Keeper`` that does it; empty for nothing."""
    for_others: bool
    """Whether it is run for guests without our metadata while claims live."""
    may_fail: bool
    """Whether an exit code other than 0 is allowed: at `reconnect` it would kill the guest."""


OPERATIONS = {
    ("prepare", "begin"): Operation("prepare", for_others=False, may_fail=True),
    ("start", "begin"): Operation("start", for_others=False, may_fail=True),
    ("started", "begin"): Operation("started", for_others=True, may_fail=True),
    ("stopped", "end"): Operation("", for_others=False, may_fail=False),
    ("release", "end"): Operation("release", for_others=True, may_fail=False),
    ("reconnect", "begin"): Operation("reconnect", for_others=True, may_fail=False),
    ("migrate", "begin"): Operation("", for_others=False, may_fail=False),
    ("restore", "begin"): Operation("", for_others=False, may_fail=False),
}
"""What is not here (``attach``, and what libvirt may add) is nothing to us."""


def main(argv: Sequence[str], stdin: IO[bytes], stdout: IO[str], root: str = "/") -> int:
    """Run one hook call; ``argv`` is GUEST OPERATION SUB-OPERATION EXTRA. Return the exit code.

    ``stdout`` is for the two operations that filter XML; nothing is written to it today: an empty
    answer keeps the XML as it is.
    """
    del stdout
    xml = stdin.read(MAX_STDIN)
    if (root == "/" and os.geteuid() != 0) or len(argv) < 3:
        return 0
    operation = OPERATIONS.get((argv[1], argv[2]))
    if operation is None or not operation.method or _exists(root, "etc/kvmhooks/disabled"):
        return 0
    is_ours = MARK in xml
    if not is_ours and not (operation.for_others and _exists(root, "run/kvmhooks/state.json")):
        return 0
    return _run(operation, argv, xml, root)


def _run(operation: Operation, argv: Sequence[str], xml: bytes, root: str) -> int:
    """Do what the operation asks for, and say what came of it in one line."""
    from kvmhooks.errors import KvmhooksError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.door import Door  # noqa: PLC0415
    from kvmhooks.isolate.keeper import Keeper  # noqa: PLC0415
    from kvmhooks.isolate.store import Store  # noqa: PLC0415

    door, store = Door(root), Store(root)
    keeper = Keeper(door, store)
    begun = door.now()
    what = f"{printable(argv[0])}: {argv[1]}"
    try:
        check_place(door.root)
        report = carry_out(keeper, operation, xml)
    except (KvmhooksError, OSError, ValueError) as error:
        door.log(f"{what}: {type(error).__name__}: {error}", severity=3)
        if not operation.may_fail:
            return 0
        sys.stderr.write(f"kvmhooks: {error}\n")
        return 1
    finally:
        store.close()
    if report is not None:
        door.log(f"{what}: {(door.now() - begun) * 1000:.0f} ms: {report}")
    return 0


def carry_out(keeper: Keeper, operation: Operation, xml: bytes) -> Report | None:
    """Call the keeper; None when the guest makes no claim and nothing was to be done.

    Raises ``KvmhooksError`` or ``OSError``.
    """
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.domain import read_claim, read_key  # noqa: PLC0415

    if operation.method == "release":
        return keeper.release(read_key(xml))
    try:
        claim = read_claim(xml)
    except IsolationError:
        if operation.method in {"prepare", "start"}:
            raise
        claim = None  # what was refused at its start holds nothing; the others are looked after
    if operation.method == "started":
        return keeper.started(claim)
    if operation.method == "reconnect":
        return keeper.reconnect(claim)
    if claim is None:
        return None
    return keeper.prepare(claim) if operation.method == "prepare" else keeper.start(claim)


def check_place(root: str) -> None:
    """Refuse where nothing can be isolated.

    Raises ``IsolationError`` in a container: /sys that cannot be written, or processes that are not
    the kernel's own (pid 2 is kthreadd only in the first pid namespace).
    """
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring

    if root != "/":
        return
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        raise IsolationError("/sys is read-only here: run libvirt outside of the container")
    try:
        with open("/proc/2/comm", "rb") as file:  # noqa: PTH123 -- pathlib costs 5 ms
            name = file.read().strip()
    except FileNotFoundError:
        name = b""
    if name != b"kthreadd":
        raise IsolationError("this is not the host's pid namespace: run libvirt outside of it")


def printable(text: str) -> str:
    """A guest's name for a log line: no line break, no more than 80 characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:80])


def _exists(root: str, path: str) -> bool:
    try:
        os.lstat(root.rstrip("/") + "/" + path)
    except OSError:
        return False
    return True


def command(arguments: list[str]) -> int:
    """``[--root DIR] GUEST OPERATION SUB-OPERATION EXTRA``; the option is for tests."""
    root = "/"
    if arguments[:1] == ["--root"] and len(arguments) > 1:
        root, arguments = arguments[1], arguments[2:]
    return main(arguments, sys.stdin.buffer, sys.stdout, root)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
