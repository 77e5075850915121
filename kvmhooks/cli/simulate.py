"""``kvmhooks simulate DOMAIN.xml``: every write of a start and a stop, and none is made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvmhooks.cli.documents import read_document
from kvmhooks.cli.roots import require_host, used
from kvmhooks.errors import InputError, IsolationError

if TYPE_CHECKING:
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.registry.dry_run import Write


def main(verb: str, argv: Sequence[str]) -> int:
    """Print what a person should know before, and the writes in order."""
    from kvmhooks.isolate.claims.domain_xml import is_placed, read_claim
    from kvmhooks.isolate.registry.dry_run import rehearse
    from kvmhooks.isolate.system.system import System

    arguments = parser_of(verb).parse_args(argv)
    document = read_document(str(arguments.domain))
    with used(arguments.root):
        require_host(arguments.root)
        try:
            claim = read_claim(document, system=System(arguments.root))
        except IsolationError as error:
            raise InputError(f"{arguments.domain}: {error}") from error
        if claim is None:
            raise InputError(
                f"{arguments.domain}: found no <kvmhooks:vm> in its metadata and no file in "
                "/etc/kvmhooks/vm.d, so nothing would be done: see `kvmhooks isolate`"
            )
        writes = [
            *foreseen(claim, document, arguments.root),
            *rehearse(claim, arguments.root, is_placed=is_placed(document)),
        ]
    if arguments.json:
        print(json.dumps([write._asdict() for write in writes], indent=2))
        return 0
    for write in writes:
        print(f"{write.phase:<8} {write.path}: {write.value or '(none)'}")
    return 0


def foreseen(claim: Claim, document: bytes, root: str) -> list[Write]:
    """Return the consequences of a start that are no writes: rows of the phase ``warning``."""
    from kvmhooks.cli.isolation import registry_of
    from kvmhooks.isolate.claims.domain_xml import without_effect
    from kvmhooks.isolate.registry.dry_run import WARNING, Write
    from kvmhooks.isolate.registry.unit_affinities import warnings
    from kvmhooks.isolate.registry.unserved import unserved

    registry = registry_of(root)
    others = registry.claims()
    hollow = without_effect(document, registry.system)
    sentences = warnings(registry.system, [claim], others)
    return [
        *(Write(WARNING, "policy", sentence) for sentence in hollow),
        *(Write(WARNING, "systemd", sentence) for sentence in sentences),
        *(
            Write(WARNING, setting, f"left out: {why}")
            for setting, why in unserved(registry.system, claim, others, hollow)
        ),
    ]


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("domain", metavar="DOMAIN.xml", type=Path, help="as `virsh dumpxml` prints")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
