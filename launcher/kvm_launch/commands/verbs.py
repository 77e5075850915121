"""``kvm-launch ps|status|stop|set|…``: the VMs that kvm-launch runs for this user."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from kvm_launch.talk.changes import parse
from kvm_launch.talk.control import ask, asked
from kvm_launch.talk.socket_names import QMP_USER, missing, path_of
from kvm_launch.tell.status import MARGIN_SECONDS, find, listed, running
from kvmhooks.errors import KvmhooksError, LaunchError, QemuError, UsageError
from kvmhooks.qemu.qmp import connect
from kvmhooks.qemu.run_dir import base_of
from kvmhooks.show.table import table

ANSWER_SECONDS: Final = 10.0

TURN_SECONDS: Final = 5.0
"""The time to wait for QEMU's monitor, which talks to one client at a time."""


def main(verb: str, argv: Sequence[str]) -> int:
    """Carry out a verb; give the exit code. Raises ``KvmhooksError``."""
    arguments = parser_of(verb).parse_args(argv)
    return VERBS[verb](arguments, base_of(arguments.run_dir))


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvm-launch {verb}",
        description=VERBS[verb].__doc__,
        epilog=EPILOGS.get(verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb == "reload":
        whom = parser.add_mutually_exclusive_group(required=True)
        whom.add_argument("--pid", metavar="PID", type=int, help="its supervisor's process")
        whom.add_argument("name", metavar="NAME", nargs="?", help="a VM that runs")
    elif verb != "ps":
        parser.add_argument("name", metavar="NAME", help="a VM that runs: see `kvm-launch ps`")
    if verb == "set":
        parser.add_argument("words", metavar="KEY=VALUE", nargs="+", help="the changes")
    if verb == "qmp":
        parser.add_argument("command", metavar="COMMAND", help="such as query-status")
        parser.add_argument("arguments", metavar="JSON", nargs="?", help="an object")
    if verb == "stop":
        parser.add_argument("--now", action="store_true", help="do not wait for the guest")
    if verb in {"ps", "status"}:
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="the directory of the VMs' sockets"
    )
    return parser


def _ps(arguments: argparse.Namespace, base: Path) -> int:
    """List the VMs that run."""
    records = list(listed(base))
    if arguments.json:
        print(json.dumps([asdict(record) for record in records], indent=2))
        return 0
    rows = [
        (
            record.name,
            record.state,
            _ago(record.since) if record.since else "",
            record.exclusive or record.cpus,
            str(record.qemu or ""),
        )
        for record in records
    ]
    print("\n".join(table(("name", "state", "for", "CPUs", "QEMU"), rows)))
    return 0


def _status(arguments: argparse.Namespace, base: Path) -> int:
    """Tell how one of them is."""
    record = find(base, arguments.name)
    if arguments.json:
        print(json.dumps(asdict(record), indent=2))
        return 0
    when = f", {_ago(record.noted)} ago" if record.noted > record.since else ""
    why = f" ({record.why}{when})" if record.why else ""
    own = f", {record.exclusive} its own" if record.exclusive else ""
    print(f"{record.name}: {record.state} for {_ago(record.since)}{why}")
    print(f"CPUs {record.cpus}{own}")
    print(f"QEMU {record.qemu}, kvm-launch {record.supervisor}, from {record.source}")
    return 0


def _stop(arguments: argparse.Namespace, base: Path) -> int:
    """Ask the VM to power off, and wait until it and its supervisor are gone."""
    record = find(base, arguments.name)
    try:
        descriptor = os.pidfd_open(record.supervisor)
    except ProcessLookupError:  # it ended between the look and the open
        return 0
    try:
        if not record.is_followed:  # and another has its number
            return 0
        _signal(descriptor)
        patience = record.patience
        if arguments.now:
            _wait(descriptor, 0.2)  # two signals at once would be one
            _signal(descriptor)
            patience = min(patience, MARGIN_SECONDS)
        if not _wait(descriptor, patience or None):
            who = f"its supervisor, process {record.supervisor}"
            raise QemuError(f"{record.name}: {who}, has not ended within {patience:g} s")
    finally:
        os.close(descriptor)
    return 0


def _qmp(arguments: argparse.Namespace, base: Path) -> int:
    """Ask its QEMU something."""
    record = find(base, arguments.name)
    answer = asyncio.run(_execute(base / record.name, arguments))
    try:
        text = json.dumps(answer, indent=2)
    except RecursionError as error:
        raise QemuError(f"{record.name}: found an answer too deep to be printed") from error
    print(text)
    return 0


async def _execute(directory: Path, arguments: argparse.Namespace) -> Any:
    request = _object(arguments.arguments)
    async with AsyncExitStack() as stack:
        try:
            connection = connect(path_of(directory, QMP_USER), seconds=TURN_SECONDS)
            monitor = await stack.enter_async_context(connection)
        except QemuError as error:
            raise await _unreached(directory, error) from error
        try:
            return await monitor.execute(arguments.command, request, seconds=ANSWER_SECONDS)
        except QemuError as error:
            raise QemuError(f"{directory.name}: {error}") from error


async def _unreached(directory: Path, error: QemuError) -> KvmhooksError:
    """Return why there was no answer: QEMU talks to one client at a time, as others wait."""
    if not path_of(directory, QMP_USER).exists():
        return missing(directory, QMP_USER)
    try:
        is_held = await asked(directory, "monitor", seconds=ANSWER_SECONDS) == ["held"]
    except KvmhooksError:  # the supervisor has ended, hangs, or is an older one
        is_held = False
    message = f"another client has held its monitor for {TURN_SECONDS:g} s" if is_held else error
    return QemuError(f"{directory.name}: {message}")


def _object(text: str | None) -> dict[str, object] | None:
    """Return the arguments of a command. Raises ``UsageError`` for what is no JSON object."""
    if text is None:
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f'JSON: found {text!r}, expected an object such as {{"id": "disk0"}}')
    return document


def _console(arguments: argparse.Namespace, base: Path) -> int:
    """Join its console; Ctrl-] leaves it."""
    from kvm_launch.talk.terminal import attach

    return attach(base / find(base, arguments.name).name)


def _set(arguments: argparse.Namespace, base: Path) -> int:
    """Change a VM while it runs."""
    parse(arguments.words)  # what is no command is told here
    record = find(base, arguments.name)
    print("\n".join(ask(base / record.name, "set", words=arguments.words)))
    return 0


def _reload(arguments: argparse.Namespace, base: Path) -> int:
    """Move a VM that runs to better CPUs, if there are any."""
    if arguments.pid is None:
        record = find(base, arguments.name)
    else:
        found = {record.supervisor: record for record in running(base)}
        if arguments.pid not in found:
            others = ", ".join(map(str, found)) or "none"
            raise LaunchError(
                f"--pid: found no VM whose supervisor is process {arguments.pid}, expected one of: "
                f"{others}"
            )
        record = found[arguments.pid]
    print("\n".join(ask(base / record.name, "reload")))
    return 0


def _signal(descriptor: int) -> None:
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    except ProcessLookupError:
        return


def _wait(descriptor: int, seconds: float | None) -> bool:
    """Return whether a process ends within so many seconds (pidfd_open(2): it is readable then)."""
    return bool(select.select([descriptor], [], [], seconds)[0])


def _ago(since: float) -> str:
    seconds = max(0, int(time.time() - since))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


VERBS: Final[Mapping[str, Callable[[argparse.Namespace, Path], int]]] = {
    "ps": _ps,
    "status": _status,
    "stop": _stop,
    "qmp": _qmp,
    "console": _console,
    "set": _set,
    "reload": _reload,
}

EPILOGS: Final[Mapping[str, str]] = {
    "console": """\
Up to 16 may join a console; each is shown the last 16 KiB of it first. It lasts until Ctrl-] is
typed at a terminal, or the VM ends. Input that is no terminal goes to the guest as it is, and its
end does not end the reading: `timeout 20 kvm-launch console NAME </dev/null` reads for 20 s.
""",
    "set": """\
keys:
  vcpu.N, iothread.N, emulator   the CPUs of a thread, as a list
  vcpus                          how many of cpu.vcpus are there
  balloon                        the memory that is left to the guest, such as 2GiB
  tuning.KEY                     a key of [tuning], or none: tuning.shares=200
""",
}
