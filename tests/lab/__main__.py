"""``python -m tests.lab``: the program of ``make lab``, ``lab-shell`` and ``lab-clean``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import cache, frozen, lab, order, used
from .errors import LabError
from .variants import IN_CI, VARIANTS

HERE = Path(__file__).parent

AT_ONCE = 2
"""The number of tests that run side by side: a lab keeps one CPU busy and may use 6 GiB."""

GONE = ["--reruns", "1", "--only-rerun", "agent hung up|ConnectionResetError"]
"""QEMU's emulation of nested machines at times resets a lab's server, whose kernel says nothing (a
panic would leave it standing). Such a test is tried once more, and named in the summary."""


def main() -> int:
    """Parse, call, and say what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="The lab.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("test", "run the lab's tests (words after -- go to pytest)"),
        ("build", "build what the tests need"),
        ("shell", "a shell in a fresh lab"),
    ):
        command = commands.add_parser(name, help=text)
        several = name != "shell"
        command.add_argument(
            "--variant",
            default=",".join(IN_CI) if several else IN_CI[0],
            help="of " + "; ".join(f"{each.name}: {each.about}" for each in VARIANTS.values()),
        )
        if name == "test":
            command.add_argument(
                "--until",
                type=int,
                metavar="SECONDS",
                help="begin no test after this time (seconds since 1970), and tell which",
            )
        command.add_argument("rest", nargs="*")
    commands.add_parser("clean", help="remove all that was built")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "clean":
        return _clean()
    names = arguments.variant.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise LabError(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    if arguments.command == "shell":
        return _shell(names[0])
    started = time.monotonic()
    is_build = arguments.command == "build"
    layers = used.layers if is_build else frozen.layers  # a test that wants more makes it
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: layers(VARIANTS[name]), names))
    cache.say(f"{', '.join(names)}: ready after {time.monotonic() - started:.0f} s")
    if is_build:
        return 0
    beside = ["-n", str(min(AT_ONCE, os.cpu_count() or 1)), *order.DISTRIBUTION]
    until = [] if arguments.until is None else ["--until", str(arguments.until)]
    words = [*beside, *GONE, *until, *arguments.rest]
    return int(pytest.main([str(HERE), "--lab", arguments.variant, *words]))


def _shell(name: str) -> int:
    with lab.running(VARIANTS[name]) as fresh:
        about = VARIANTS[name].about
        cache.say(f"{name}: {about}. It ends, and all changes with it, when you leave the shell.")
        if os.isatty(0):
            return fresh.agent.interact(["bash", "-l"])
        result = fresh.run(["bash", "-s"], stdin=sys.stdin.read(), seconds=3600)
        print(result.stdout, end="")
        print(result.stderr, end="", file=sys.stderr)
        return result.exit_code


def _clean() -> int:
    directory = cache.directory()
    if not directory.exists():
        return 0
    if lab.is_any_running():
        raise LabError(f"labs are running: see {directory / 'run'}")
    with ExitStack() as stack:  # nobody is to be left with half of what it builds
        for lock in sorted(directory.glob("*.lock")):
            stack.enter_context(cache.locked(lock, seconds=0))
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
