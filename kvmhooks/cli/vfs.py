"""``kvmhooks vfs``: what a card lets its virtual functions do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kvmhooks.errors import HostError, UsageError


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the settings of a card's functions, or set some of one and print what it has then."""
    from kvmhooks.devices import vf_netlink
    from kvmhooks.values import PciAddress

    arguments = parser_of(verb).parse_args(argv)
    wrong = [word for word in arguments.setting if "=" not in word]
    if wrong:
        raise UsageError(f"found {wrong[0]!r}, expected NAME=VALUE")
    settings = dict(word.split("=", 1) for word in arguments.setting)
    vf_netlink.request(0, settings)  # whatever is wrong with them is told before the card is asked
    card = Card(str(PciAddress.parse(arguments.card)), vf_netlink.read, vf_netlink.write)
    found = card.answer(arguments.number, settings)
    if verb != HOOKS_NAME and arguments.number is not None:
        check_set(card.pf, arguments.number, found[arguments.number], settings)
    if not found:
        print(f"{card.pf}: it has no virtual functions now, and may have {card.most}",
              file=sys.stderr)  # fmt: skip
    if arguments.json:
        print(json.dumps({str(number): values for number, values in found.items()}))
        return 0
    for number, values in found.items():
        print(number, *(f"{name}={text}" for name, text in values.items()))
    return 0


HOOKS_NAME: Final = "functions"
"""The name by which the hook calls: it compares for itself, and gives back what can be had."""

_NO_MAC: Final = "00:00:00:00:00:00"
"""None, in the place of which some drivers have another (``vf_netlink``)."""


class Card:
    """A physical function, asked and told by the functions of ``vf_netlink``."""

    def __init__(
        self,
        pf: str,
        read: Callable[[str], dict[int, dict[str, str]]],
        write: Callable[[str, int, Mapping[str, str]], Any],
        root: Path = Path("/"),
    ) -> None:
        from kvmhooks.devices.vf_netlink import check_card

        self.pf = pf
        self.most = check_card(pf, root)
        self._read = read
        self._write = write

    def answer(self, number: int | None, settings: Mapping[str, str]) -> dict[int, dict[str, str]]:
        """Return what its functions have, or one of them, after some of that was set.

        Raises ``HostError`` for a function that is not there.
        """
        found = self._read(self.pf)
        if number is None:
            return found
        if number not in found:
            there = f"0 to {max(found)}" if found else "a card that has some now"
            raise HostError(f"{self.pf}: found no function {number}, expected {there}")
        if settings:
            self._write(self.pf, number, settings)
            found = self._read(self.pf)
        return {number: found.get(number, {})}


def check_set(pf: str, number: int, now: Mapping[str, str], settings: Mapping[str, str]) -> None:
    """Raise ``HostError`` where a function has not become what it was told to be."""
    for name, text in settings.items():
        if now.get(name, "-").lower() != text.lower() and (name, text) != ("mac", _NO_MAC):
            was = f"{name}={now.get(name, '-')} afterwards"
            raise HostError(f"{pf}: function {number}: found {was}, expected {name}={text}")


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}",
        description="Print what a card lets its virtual functions do, or set it.",
        allow_abbrev=False,
    )
    parser.add_argument("card", metavar="ADDRESS", help="the card: its physical function")
    parser.add_argument("number", metavar="NUMBER", type=int, nargs="?", help="of one function")
    parser.add_argument(
        "setting", metavar="NAME=VALUE", nargs="*", help="mac, vlan, trust, spoofchk, rate (Mbit/s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
