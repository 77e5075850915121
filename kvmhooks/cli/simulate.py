"""``kvmhooks simulate DOMAIN.xml``: every write of a start and a stop, and none is made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from kvmhooks.cli.documents import read_document
from kvmhooks.cli.roots import require_host, used
from kvmhooks.errors import InputError


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the writes in order."""
    from kvmhooks.isolate.domain import read_claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.rehearsal import rehearse

    arguments = parser_of(verb).parse_args(argv)
    document = read_document(str(arguments.domain))
    with used(arguments.root):
        require_host(arguments.root)
        claim = read_claim(document, door=Door(arguments.root))
        if claim is None:
            raise InputError(
                f"{arguments.domain}: found no <kvmhooks:vm> in its metadata and no file in "
                "/etc/kvmhooks/vm.d, so nothing would be done: see `kvmhooks isolate`"
            )
        writes = rehearse(claim, arguments.root)
    if arguments.json:
        print(json.dumps([write._asdict() for write in writes], indent=2))
        return 0
    for write in writes:
        print(f"{write.phase:<8} {write.path}: {write.value or '(none)'}")
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("domain", metavar="DOMAIN.xml", type=Path, help="as `virsh dumpxml` prints")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
