"""libvirt's call: ``qemu GUEST OPERATION SUB-OPERATION EXTRA``, with the domain's XML on stdin.

https://libvirt.org/hooks.html. libvirt holds the VM while this runs, shows stderr only when the
exit code is not 0, and takes stdout as new XML in two operations. A guest that is none of ours must
cost no more than the start of the interpreter: nothing but ``fastpath`` is imported before that is
known, ``typing`` included.
"""

from __future__ import annotations

import os
import sys

from kvmhooks.isolate.hook import fastpath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.registry.registry import Registry

MAY_FAIL = {"prepare begin", "start begin", "started begin"}
"""The operations that may fail: at `reconnect` an exit code but 0 would kill the guest."""

OTHERS_BUDGET = 2.0
"""Seconds at most for a call of a guest that makes no claim: the rest is owed."""

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
    xml = stdin.read(fastpath.MAX_STDIN)
    if " ".join(argv[1:3]) in fastpath.FILTERS:
        stdout.write(filtered(argv, xml, root, planner).decode())
        return 0
    return answer(argv, xml, root, planner=planner)


def filtered(argv: list[str], xml: bytes, root: str, planner: Sequence[str]) -> bytes:
    """Return the XML that a domain should have instead; empty for the same, or when that fails.

    ``planner`` are the words that run `kvmhooks`.
    """
    if not fastpath.concerns(argv, xml, root):
        return b""
    try:
        from kvmhooks.isolate.hook import migration_filter as filters  # noqa: PLC0415 -- see the module's docstring
        from kvmhooks.isolate.record.store import Store  # noqa: PLC0415
        from kvmhooks.isolate.registry.registry import Registry  # noqa: PLC0415
        from kvmhooks.isolate.system.system import System  # noqa: PLC0415

        return filters.answer(xml, Registry(System(root), Store(root)), planner)
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
    if not fastpath.concerns(argv, xml, root):
        return 0
    try:
        work(argv, xml, root, program, planner)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, and with one line of it
        return failed(argv, xml, root, error, program)
    return 0


def work(
    argv: list[str], xml: bytes, root: str, program: Sequence[str], planner: Sequence[str]
) -> None:
    """Do what a call asks for, and log what came of it. Raises whatever goes wrong."""
    from kvmhooks.errors import KvmhooksError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.hook import telling  # noqa: PLC0415
    from kvmhooks.isolate.record.store import Store  # noqa: PLC0415
    from kvmhooks.isolate.registry.registry import Registry  # noqa: PLC0415
    from kvmhooks.isolate.system.system import System  # noqa: PLC0415

    system, store = System(root), Store(root)
    budget = None if is_ours(argv, xml, root) else OTHERS_BUDGET
    registry = Registry(system, store, budget, helper=planner)
    begun = system.now()
    operation = argv[1]
    try:
        check_place(root)
        report = carry_out(registry, operation, xml)
    finally:
        store.close()
    if report is None:
        return
    took = f"{(system.now() - begun) * 1000:.0f} ms"
    system.log(f"{telling.printable(argv[0])}: {operation}: {took}: {report}")
    if operation == "prepare":
        try:
            foresee(registry, xml)
        except Exception as error:  # noqa: BLE001 -- no VM is refused for want of a warning
            log(root, argv, error)
    if operation in {"started", "reconnect"}:
        try:
            follow_up(registry, xml, program)
        except (KvmhooksError, OSError, ValueError) as error:  # isolated CPUs stay so
            log(root, argv, error)
    is_left = registry.owes(report) or (report.is_pending and operation == "release")
    if is_left and " ".join(argv[1:3]) in fastpath.ANYBODYS:
        retry(root, program)


def failed(
    argv: list[str], xml: bytes, root: str, error: BaseException, program: Sequence[str] = ()
) -> int:
    """Tell why a call failed, have what it was to do tried again, and return the exit code.

    It is 1 only where a guest that asks for something of the host is refused it.
    """
    operation = " ".join(argv[1:3])
    log(root, argv, error)
    if operation in MAY_FAIL and is_ours(argv, xml, root):
        from kvmhooks.isolate.hook import telling  # noqa: PLC0415 -- see the module's docstring

        telling.tell(f"kvmhooks: {telling.words_of(error)}")
        return 1
    if operation in fastpath.ANYBODYS:
        retry(root, program)
    return 0


def is_ours(argv: list[str], xml: bytes, root: str) -> bool:
    """Return whether a guest asks for something of the host, as far as its XML can be read.

    It does by our element in its metadata, not by our name anywhere else, or by a file of its name.
    """
    if fastpath.is_named(argv[0], root):
        return True
    if fastpath.MARK not in xml:
        return False
    try:
        from kvmhooks.isolate.claims.domain_xml import has_policy  # noqa: PLC0415 -- see the module's docstring

        return has_policy(xml)
    except BaseException as error:  # noqa: BLE001 -- as in answer
        log(root, argv, error)
        return False


def carry_out(registry: Registry, operation: str, xml: bytes) -> Report | None:
    """Call the registry; None when the guest makes no claim and nothing was to be done.

    Raises ``KvmhooksError`` or ``OSError``.
    """
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.claims.domain_xml import is_placed, read_claim, read_key  # noqa: PLC0415

    if operation == "release":
        return registry.release(read_key(xml))
    try:
        claim = read_claim(xml, system=registry.system)
    except IsolationError:
        if operation in {"prepare", "start"}:
            raise
        claim = None  # a guest refused at its start holds nothing; the others are looked after
    if operation == "started":
        return registry.started(claim)
    if operation == "reconnect":
        return registry.reconnect(claim)
    if claim is None:
        return None
    if operation == "start":
        return registry.start(claim)
    return registry.prepare(claim, is_placed=is_placed(xml))


def follow_up(registry: Registry, xml: bytes, program: Sequence[str]) -> None:
    """Start the VM's follower, if it holds a claim that needs one."""
    from kvmhooks.errors import IsolationError  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.claims.administrator import VMS  # noqa: PLC0415
    from kvmhooks.isolate.claims.domain_xml import read_key  # noqa: PLC0415
    from kvmhooks.isolate.hook.follower_unit import ensure  # noqa: PLC0415

    if fastpath.MARK not in xml and not registry.system.has(VMS):
        return
    try:
        key = read_key(xml)
    except IsolationError:
        return  # such XML makes no claim: nothing of it is followed
    ensure(registry, key, program)


def foresee(registry: Registry, xml: bytes) -> None:
    """Log which words of the VM do nothing, and which units of systemd cannot start beside it."""
    from kvmhooks.isolate.claims.domain_xml import read_claim, without_effect  # noqa: PLC0415
    from kvmhooks.isolate.registry.unit_affinities import SECONDS, warnings  # noqa: PLC0415 -- see above

    claim = read_claim(xml, system=registry.system)
    if claim is None:
        return
    found = without_effect(xml, registry.system)
    others = registry.claims() if claim.settings or claim.exclusive else []
    if claim.settings:
        from kvmhooks.isolate.registry.unserved import told  # noqa: PLC0415 -- most ask for none

        found = told(registry.system, claim, others, found)
    if claim.exclusive:
        found += warnings(registry.system, [claim], others, SECONDS)
    for warning in found:
        registry.system.log(f"{claim.name}: {warning}", severity=4)


def log(root: str, argv: list[str], error: BaseException) -> None:
    """Log in one line what went wrong with a call."""
    from kvmhooks.isolate.hook import telling  # noqa: PLC0415 -- see the module's docstring

    call = ": ".join(map(telling.printable, argv[:2]))
    telling.log(root, f"{call}: {type(error).__name__}: {telling.words_of(error)}")


def retry(root: str, program: Sequence[str] = ()) -> None:
    """Have a process try again until nothing is owed; ``program`` are the words that run this hook.

    Nobody waits in a tree of files. Raise nothing: that none can be had is logged.
    """
    from kvmhooks.isolate.hook import telling  # noqa: PLC0415 -- see the module's docstring

    if root != "/":
        return
    try:
        from kvmhooks.isolate.hook.follower_unit import await_owed  # noqa: PLC0415
        from kvmhooks.isolate.record.store import Store  # noqa: PLC0415
        from kvmhooks.isolate.registry.registry import Registry  # noqa: PLC0415
        from kvmhooks.isolate.system.system import System  # noqa: PLC0415

        await_owed(Registry(System(root), Store(root)), program)
    except BaseException as error:  # noqa: BLE001 -- as in answer
        telling.log(root, f"nobody waits for what is owed: {telling.words_of(error)}")


def reconcile(
    root: str,
    pauses: Sequence[float] = PAUSES,
    planner: Sequence[str] = (),
    program: Sequence[str] = (),
) -> int:
    """Put right what an earlier call has left; 4 when something still is. For the systemd unit.

    Work that could not be done, or does not show yet, is looked at again after each of the
    ``pauses``.
    """
    from kvmhooks.isolate.hook import telling  # noqa: PLC0415 -- see the module's docstring
    from kvmhooks.isolate.record.store import Store  # noqa: PLC0415
    from kvmhooks.isolate.registry.registry import Registry  # noqa: PLC0415
    from kvmhooks.isolate.system.system import System  # noqa: PLC0415

    system = System(root)
    if fastpath.is_disabled(root):
        return 0
    try:
        registry = Registry(system, Store(root), helper=planner)
        report = registry.reconcile()
        for pause in pauses:
            if report.is_pending or report.is_incomplete:
                system.sleep(pause)
                report = registry.reconcile()
    except Exception as error:  # noqa: BLE001 -- systemd tries again, whatever it is
        telling.tell(f"kvmhooks: {telling.words_of(error)}")
        return 4
    system.log(f"reconcile: {report}")
    is_left = report.is_incomplete or report.is_pending
    if is_left or registry.owes(report):
        retry(root, program)
    return 4 if is_left else 0


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
    """Run ``GUEST OPERATION SUB-OPERATION EXTRA``, ``--reconcile``, ``--follow KEY`` or
    ``--settle``.

    ``--root DIR`` before them, or behind an option, is for tests. ``xml`` is stdin's text where it
    was read already; ``chained`` the script that was in our place before: it gets the same call
    once ours is done, in this very process, and its output and exit code are the answer.
    ``planner`` are the words that run `kvmhooks`.
    """
    stand()
    root = "/"
    if arguments[:1] == ["--root"] and len(arguments) > 1 and not is_call(arguments):
        root, arguments = arguments[1], arguments[2:]
    if arguments[:1] != [] and arguments[0].startswith("--") and not is_call(arguments):
        from kvmhooks.isolate.hook import options  # noqa: PLC0415 -- another process's business

        def again(root: str) -> int:
            return reconcile(root, planner=planner, program=this_program())

        return options.carry_out(root, arguments, planner, again, write)
    if xml is None:
        xml = fastpath.read_xml()
    code, found = 0, b""
    if " ".join(arguments[1:3]) in fastpath.FILTERS:
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


def is_call(arguments: list[str]) -> bool:
    """Return whether these are libvirt's words; its guest may be called like an option."""
    return len(arguments) == 4 and not arguments[2].startswith("--")


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
