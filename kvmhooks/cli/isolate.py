"""``kvmhooks isolate NAME --policy SETTING=VALUE…``: write the policy into a libvirt domain."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import quoteattr

from kvmhooks.cli.beside import SYSTEM
from kvmhooks.cli.beside import check as check_together
from kvmhooks.errors import LaunchError, QemuError, UsageError, words_of

_VIRSH: Final = "/usr/bin/virsh"

_UNANSWERED: Final = "failed to connect to the hypervisor"
"""The words where nobody answers (``virshConnect()``, tools/virsh.c)."""

DEFAULT = ("isolation.exclusive=yes",)


def main(verb: str, argv: Sequence[str]) -> int:
    """Set the metadata element in the persistent definition, or print it."""
    from kvmhooks.isolate.claims.effects import VmFacts, without_effect
    from kvmhooks.policy import check

    arguments = parser_of(verb).parse_args(argv)
    check_together(verb, arguments)
    words = [word.partition("=") for word in arguments.policy]
    if not all(equals for _, equals, _ in words):
        raise UsageError(f"found {' '.join(arguments.policy)!r}, expected SETTING=VALUE")
    settings = check({name: value for name, _, value in words}, place="--policy")
    for sentence in without_effect(settings, VmFacts(settings)):
        print(f"--policy: {sentence}", file=sys.stderr)
    element = element_of(settings)
    told = json.dumps({"name": arguments.name, "settings": settings, "element": element}, indent=2)
    if arguments.print:
        print(told if arguments.json else element)
        return 0
    _virsh(
        arguments.connect or SYSTEM, "metadata", "--domain", arguments.name,
        "--uri", "urn:kvmhooks:1", "--key", "kvmhooks", "--set", element, "--config",
    )  # fmt: skip
    print(told if arguments.json else f"{arguments.name}: its next start follows the policy")
    return 0


def _virsh(uri: str, *words: str) -> None:
    """Have libvirt do something. Raises ``QemuError`` where none answers, else ``LaunchError``.

    Its own tool is asked, since the library is an extra.
    """
    try:
        done = subprocess.run(
            [_VIRSH, "--quiet", "--connect", uri, *words],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as error:
        raise LaunchError(words_of(error)) from error
    lines = [line.strip().removeprefix("error: ") for line in done.stderr.splitlines()]
    message = f"libvirt: {uri}: {': '.join(filter(None, lines))}"
    if done.returncode != 0 and _UNANSWERED in message:
        raise QemuError(message)
    if done.returncode != 0:
        raise LaunchError(message)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="a libvirt domain")
    parser.add_argument(
        "--policy",
        metavar="SETTING=VALUE",
        nargs="+",
        default=DEFAULT,
        help="such as isolation.exclusive=yes power.governor=performance",
    )
    parser.add_argument("--connect", metavar="URI", help=f"by default {SYSTEM}")
    parser.add_argument("--print", action="store_true", help="print the element and do nothing")
    parser.add_argument("--json", action="store_true", help="print what was set as JSON")
    return parser


def element_of(settings: Mapping[str, str]) -> str:
    """Return the ``<vm>`` element that says so; libvirt adds the namespace and its prefix."""
    children: dict[str, list[str]] = defaultdict(list)
    for name, value in sorted(settings.items()):
        child, _, attribute = name.partition(".")
        children[child].append(f" {attribute}={quoteattr(value)}")
    inner = "".join(f"<{child}{''.join(attributes)}/>" for child, attributes in children.items())
    return f"<vm>{inner}</vm>"
