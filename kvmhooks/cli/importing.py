"""``kvmhooks import DOMAIN.xml``: the vm.toml of the VM that a libvirt domain XML describes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from kvmhooks.cli.documents import read_document
from kvmhooks.errors import InputError
from kvmhooks.output import document


def main(verb: str, argv: Sequence[str]) -> int:
    """Print or write the vm.toml; what it cannot say goes to stderr."""
    from kvmhooks.libvirt.importing.importing import read_domain

    arguments = parser_of(verb).parse_args(argv)
    made = read_domain(read_document(arguments.domain), arguments.domain)
    if arguments.output is not None:
        try:
            with arguments.output.open("x", encoding="utf-8") as file:
                file.write(made.toml)
        except OSError as error:
            raise InputError(f"{arguments.output}: {error.strerror}") from error
    if arguments.json:
        report = {"toml": made.toml, "decided": _json(made.decided)}
        print(json.dumps({**report, "unexpressed": _json(made.unexpressed)}, indent=2))
        return 0
    if arguments.output is None:
        document(made.toml)
    for left in made.unexpressed:
        print(f"not expressed: {left}", file=sys.stderr)
    for left in made.decided:
        print(f"decided anew: {left}", file=sys.stderr)
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("domain", metavar="DOMAIN.xml", help="as `virsh dumpxml` prints; or -")
    parser.add_argument("-o", "--output", metavar="VM.toml", type=Path, help="a new file to write")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _json(rows: Sequence[attrs.AttrsInstance]) -> list[dict[str, str]]:
    return [attrs.asdict(left) for left in rows]
