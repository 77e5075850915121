"""What libvirt runs: ``qemu GUEST OPERATION SUB-OPERATION EXTRA``, with the domain's XML on stdin.

https://libvirt.org/hooks.html. libvirt holds the VM while this runs, shows stderr only when the
exit code is not 0, and takes stdout as new XML in two operations. A guest that is none of ours must
cost no more than the start of the interpreter: nothing but ``gate`` is imported before that is
known, ``typing`` included.
"""

from __future__ import annotations

import os
import sys

from kvmhooks.isolate import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from kvmhooks.isolate.keeper import Keeper
    from kvmhooks.isolate.report import Report

MAY_FAIL = {"prepare begin", "start begin", "started begin"}
"""Whose exit code may be another than 0: at `reconnect` it would kill the guest."""

OTHERS_BUDGET = 2.0
"""Seconds for a call of a guest that makes no claim: what it does not come to is `reconcile`'s."""

PAUSES = (2.0, 4.0, 5.0)
"""Seconds between looks at a daemon that takes up later what it was told.

irqbalance scans every ten by default (irqbalance(1), -t), and answers nobody meanwhile.
"""


def main(
    argv: list[str],
    stdin: IO[bytes],
    stdout: IO[str],
    root: str = "/",
    planner: Sequence[str] = (),
) -> int:
    """Run one hook call; ``argv`` is GUEST OPERATION SUB-OPERATION EXTRA. Return the exit code.

    ``stdout`` is for the two operations that filter XML: an empty answer keeps the XML as it is.
    """
    xml = stdin.read(gate.MAX_STDIN)
    if " ".join(argv[1:3]) in gate.FILTERS:
        stdout.write(filtered(argv, xml, root, planner).decode())
        return 0
    return answer(argv, xml, root, planner=planner)


def filtered(argv: list[str], xml: bytes, root: str, planner: Sequence[str]) -> bytes:
    """Return the XML that a domain should have instead; empty for the same, or when that fails.

    ``planner`` are the words that run `kvmhooks`.
    """
    if not gate.concerns(argv, xml, root):
        return b""
    try:
        from kvmhooks.isolate import filter as filters  # noqa: PLC0415 -- see the module's docstring
        from kvmhooks.isolate.door import Door  # noqa: PLC0415
        from kvmhooks.isolate.keeper import Keeper  # noqa: PLC0415
        from kvmhooks.isolate.store import Store  # noqa: PLC0415

        return filters.answer(xml, Keeper(Door(root), Store(root)), planner)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the domain moves as it is
        log(root, argv, error)
        return b""


def answer(
    argv: list[str],
    xml: bytes,
    root: str,
    program: Sequence[str] = (),
    planner: Sequence[str] = (),
) -> int:
    """Do what a call asks for, if it is any of our business, and log what came of it in one line.

    ``program`` are the words that run this hook again, ``planner`` those that run `kvmhooks`.
    Return the exit code; raise nothing: a guest that makes no claim starts whatever happens here.
    """
    if not gate.concerns(argv, xml, root):
        return 0
    try:
        work(argv, xml, root, program, planner)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, and with one line of it
        return failed(argv, xml, root, error)
    return 0


def work(
    argv: list[str], xml: bytes, root: str, program: Sequence[str], planner: Sequence[str]
) -> None:
    """Do what a call asks for, and log what came of it. Raises whatever goes wrong."""
    from kvmhooks.errors import KvmhooksError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate import telling  # noqa: PLC0415
    from kvmhooks.isolate.door import Door  # noqa: PLC0415
    from kvmhooks.isolate.keeper import Keeper  # noqa: PLC0415
    from kvmhooks.isolate.store import Store  # noqa: PLC0415

    door, store = Door(root), Store(root)
    budget = None if is_ours(argv, xml, root) else OTHERS_BUDGET
    keeper = Keeper(door, store, budget, helper=planner)
    begun = door.now()
    operation = argv[1]
    try:
        check_place(root)
        report = carry_out(keeper, operation, xml)
    finally:
        store.close()
    if report is None:
        return
    took = f"{(door.now() - begun) * 1000:.0f} ms"
    door.log(f"{telling.printable(argv[0])}: {operation}: {took}: {report}")
    if operation in {"started", "reconnect"}:
        try:
            follow_up(keeper, xml, program)
        except (KvmhooksError, OSError, ValueError) as error:  # what was isolated stays so
            log(root, argv, error)
    is_left = report.is_incomplete or (report.is_pending and operation == "release")
    if is_left and " ".join(argv[1:3]) in gate.ANYBODYS:
        retry(root)


def failed(argv: list[str], xml: bytes, root: str, error: BaseException) -> int:
    """Tell why a call failed, leave to `reconcile` what it was to do, and return the exit code.

    That is 1 only where a guest that asks for something of the host is refused it.
    """
    operation = " ".join(argv[1:3])
    log(root, argv, error)
    if operation in MAY_FAIL and is_ours(argv, xml, root):
        from kvmhooks.isolate import telling  # noqa: PLC0415 -- see the module's docstring

        telling.tell(f"kvmhooks: {telling.words_of(error)}")
        return 1
    if operation in gate.ANYBODYS:
        retry(root)
    return 0


def is_ours(argv: list[str], xml: bytes, root: str) -> bool:
    """Whether a guest asks for something of the host, as far as its XML can be read.

    It does by our element in its metadata, not by our name anywhere else, or by a file of its name.
    """
    if gate.is_named(argv[0], root):
        return True
    if gate.MARK not in xml:
        return False
    try:
        from kvmhooks.isolate.domain import has_policy  # noqa: PLC0415 -- see the module's docstring

        return has_policy(xml)
    except BaseException as error:  # noqa: BLE001 -- as in answer
        log(root, argv, error)
        return False


def carry_out(keeper: Keeper, operation: str, xml: bytes) -> Report | None:
    """Call the keeper; None when the guest makes no claim and nothing was to be done.

    Raises ``KvmhooksError`` or ``OSError``.
    """
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.domain import read_claim, read_key  # noqa: PLC0415

    if operation == "release":
        return keeper.release(read_key(xml))
    try:
        claim = read_claim(xml, door=keeper.door)
    except IsolationError:
        if operation in {"prepare", "start"}:
            raise
        claim = None  # what was refused at its start holds nothing; the others are looked after
    if operation == "started":
        return keeper.started(claim)
    if operation == "reconnect":
        return keeper.reconnect(claim)
    if claim is None:
        return None
    return keeper.prepare(claim) if operation == "prepare" else keeper.start(claim)


def follow_up(keeper: Keeper, xml: bytes, program: Sequence[str]) -> None:
    """Start the VM's follower, if it holds a claim that needs one."""
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.configuration import VMS  # noqa: PLC0415
    from kvmhooks.isolate.domain import read_key  # noqa: PLC0415
    from kvmhooks.isolate.service import ensure  # noqa: PLC0415

    if gate.MARK not in xml and not keeper.door.has(VMS):
        return
    try:
        key = read_key(xml)
    except IsolationError:
        return  # such XML makes no claim: nothing of it is followed
    ensure(keeper, key, program)


def log(root: str, argv: list[str], error: BaseException) -> None:
    """Log in one line what went wrong with a call."""
    from kvmhooks.isolate import telling  # noqa: PLC0415 -- see the module's docstring

    call = ": ".join(map(telling.printable, argv[:2]))
    telling.log(root, f"{call}: {type(error).__name__}: {telling.words_of(error)}")


def retry(root: str) -> None:
    """Have systemd run `reconcile` until it succeeds; without it the next hook call does.

    Raise nothing: that it cannot be had is logged.
    """
    from kvmhooks.isolate import telling  # noqa: PLC0415 -- see the module's docstring

    try:
        from kvmhooks.isolate.door import Door  # noqa: PLC0415

        systemd = Door(root).systemd()
        if systemd is not None:
            with systemd:
                systemd.start("kvmhooks-reconcile.service")
    except BaseException as error:  # noqa: BLE001 -- as in answer
        telling.log(root, f"reconcile was not scheduled: {telling.words_of(error)}")


def reconcile(root: str, pauses: Sequence[float] = PAUSES, planner: Sequence[str] = ()) -> int:
    """Put right what an earlier call has left; 4 when something still is. For the systemd unit.

    What could not be done, or does not show yet, is looked at again after each of the ``pauses``.
    """
    from kvmhooks.isolate import telling  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.door import Door  # noqa: PLC0415
    from kvmhooks.isolate.keeper import Keeper  # noqa: PLC0415
    from kvmhooks.isolate.store import Store  # noqa: PLC0415

    door = Door(root)
    if gate.exists(root, "etc/kvmhooks/disabled"):
        return 0
    try:
        keeper = Keeper(door, Store(root), helper=planner)
        report = keeper.reconcile()
        for pause in pauses:
            if report.is_pending or report.is_incomplete:
                door.sleep(pause)
                report = keeper.reconcile()
    except Exception as error:  # noqa: BLE001 -- systemd tries again, whatever it is
        telling.tell(f"kvmhooks: {telling.words_of(error)}")
        return 4
    door.log(f"reconcile: {report}")
    return 4 if report.is_incomplete or report.is_pending else 0


def check_place(root: str) -> None:
    """Refuse where nothing can be isolated.

    Raises ``IsolationError`` in a container: /sys that cannot be written, or processes that are not
    the kernel's own (pid 2 is kthreadd only in the first pid namespace).
    """
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring

    if root != "/":
        return
    if os.statvfs("/sys").f_flag & os.ST_RDONLY:
        raise IsolationError("/sys is read-only here: run VMs outside of the container")
    try:
        with open("/proc/2/comm", "rb") as file:  # noqa: PTH123 -- pathlib costs 5 ms
            name = file.read().strip()
    except FileNotFoundError:
        name = b""
    if name != b"kthreadd":
        raise IsolationError("this is not the host's pid namespace: run VMs outside of it")


def command(
    arguments: list[str],
    xml: bytes | None = None,
    chained: str = "",
    planner: Sequence[str] = (),
) -> int:
    """``GUEST OPERATION SUB-OPERATION EXTRA``, or ``--reconcile``, or ``--follow KEY``.

    ``--root DIR`` before them is for tests. ``xml`` is stdin's text where it was read already;
    ``chained`` the script that was in our place before: it gets the same call once ours is done, in
    this very process, and its output and exit code are the answer. ``planner`` are the words that
    run `kvmhooks`.
    """
    stand()
    root = "/"
    if arguments[:1] == ["--root"] and len(arguments) > 1:
        root, arguments = arguments[1], arguments[2:]
    if arguments == ["--reconcile"]:
        return reconcile(root, planner=planner)
    if arguments[:1] == ["--follow"] and len(arguments) == 2:
        from kvmhooks.isolate.follower import follow  # noqa: PLC0415 -- another process's business

        return follow(root, arguments[1])
    if xml is None:
        xml = gate.read_xml()
    code, found = 0, b""
    if " ".join(arguments[1:3]) in gate.FILTERS:
        found = filtered(arguments, xml, root, planner)
    else:
        code = answer(arguments, xml, root, this_program(), planner)
    if code == 0 and chained and os.access(chained, os.X_OK):
        hand_on(chained, arguments, found or xml, root)
    try:
        write(1, found)
    except OSError as error:
        log(root, arguments, error)
    return code


def stand() -> None:
    """Open what is closed of the three standard files: the next file that is opened is none."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            try:
                os.open(os.devnull, os.O_RDWR)
            except OSError:  # there is no /dev: nothing can be put in its place
                return


def this_program() -> list[str]:
    """Return the words that run this hook again; none for what is no program of its own."""
    try:
        own = os.path.abspath(sys.argv[0])  # noqa: PTH100 -- pathlib costs 5 ms
    except OSError:  # the working directory is gone
        return []
    return [own] if os.access(own, os.X_OK) and not own.endswith(".py") else []


def hand_on(chained: str, arguments: list[str], xml: bytes, root: str) -> None:
    """Become another hook script, with the same arguments and the XML on stdin.

    Return where it cannot be run: that keeps no VM from starting, and is logged.
    """
    try:
        copy = os.memfd_create("xml", 0)
        write(copy, xml)
        os.lseek(copy, 0, os.SEEK_SET)
        os.dup2(copy, 0)
        os.execv(chained, [chained, *arguments])  # noqa: S606 -- no shell on purpose
    except (OSError, ValueError) as error:
        log(root, arguments, error)


def write(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises ``OSError``."""
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
