"""``kvmhooks vfs``: what a card lets its virtual functions do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from kvmhooks.cli.beside import check


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the settings of a card's functions, or set some of one."""
    from kvmhooks.devices import vf_netlink
    from kvmhooks.errors import HostError, UsageError
    from kvmhooks.values import PciAddress

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    pf = str(PciAddress.parse(arguments.card))
    if not arguments.setting:
        found = vf_netlink.read(pf)
        if not found and not arguments.json:
            raise HostError(f"{pf}: found no virtual functions, expected some")
        if arguments.number is not None:
            if arguments.number not in found:
                last = max(found)
                raise HostError(f"{pf}: found no function {arguments.number}, expected 0 to {last}")
            found = {arguments.number: found[arguments.number]}
        if arguments.json:
            print(json.dumps({str(number): settings for number, settings in found.items()}))
            return 0
        for number, settings in found.items():
            print(number, *(f"{name}={text}" for name, text in settings.items()))
        return 0
    wrong = [word for word in arguments.setting if "=" not in word]
    if wrong:
        raise UsageError(f"found {wrong[0]!r}, expected NAME=VALUE")
    settings = dict(word.split("=", 1) for word in arguments.setting)
    vf_netlink.write(pf, arguments.number, settings)
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}",
        description="Print what a card lets its virtual functions do, or set it.",
        allow_abbrev=False,
    )
    parser.add_argument("card", metavar="ADDRESS", help="the card: its physical function")
    parser.add_argument("number", metavar="NUMBER", type=int, nargs="?", help="of a function")
    parser.add_argument(
        "setting", metavar="NAME=VALUE", nargs="*", help="mac, vlan, trust, spoofchk, rate (Mbit/s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
