"""``kvmhooks isolate NAME --policy SETTING=VALUE…``: write the policy into a libvirt domain."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import quoteattr

from kvmhooks.cli.beside import SYSTEM
from kvmhooks.cli.beside import check as check_together
from kvmhooks.errors import QemuError, UsageError

DEFAULT = ("isolation.exclusive=yes",)


def main(verb: str, argv: Sequence[str]) -> int:
    """Set the metadata element in the persistent definition, or print it."""
    from kvmhooks.isolate.claims.policy import check

    arguments = parser_of(verb).parse_args(argv)
    check_together(verb, arguments)
    words = [word.partition("=") for word in arguments.policy]
    if not all(equals for _, equals, _ in words):
        raise UsageError(f"found {' '.join(arguments.policy)!r}, expected SETTING=VALUE")
    settings = check({name: value for name, _, value in words}, place="--policy")
    element = element_of(settings)
    told = json.dumps({"name": arguments.name, "settings": settings, "element": element}, indent=2)
    if arguments.print:
        print(told if arguments.json else element)
        return 0
    uri = arguments.connect or SYSTEM
    done = subprocess.run(
        ["/usr/bin/virsh", "--connect", uri, "metadata", "--domain", arguments.name,
         "--uri", "urn:kvmhooks:1", "--key", "kvmhooks", "--set", element, "--config"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise QemuError(f"virsh metadata {arguments.name}: {done.stderr.strip()}")
    print(told if arguments.json else f"{arguments.name}: its next start follows the policy")
    return 0


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
