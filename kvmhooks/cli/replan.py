"""``kvmhooks replan NAME|-``: a VM on better CPUs of this host, if there are any."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from kvmhooks import output
from kvmhooks.cli.beside import SYSTEM, check
from kvmhooks.cli.roots import used
from kvmhooks.errors import IsolationError

if TYPE_CHECKING:
    from kvmhooks.inventory.inventory import Inventory
    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.libvirt.tuning.replan import Replanned

_EXAMPLES = """\
examples:
  kvmhooks replan web --dry-run     say what would move
  kvmhooks replan web               move the running VM web, and its isolation with it
  kvmhooks replan - < web.xml       print it with pins for this host; nothing if they are right
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Move a running VM of libvirt, or answer for a domain on the standard input."""
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    registry = Registry(System(arguments.root), Store(arguments.root))
    if arguments.domain == "-":
        with used(arguments.root):
            answer = _answer(arguments.root)
        output.document(answer)
        return 0
    with used(arguments.root):
        result = _move(registry, arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    for change in result["changes"]:
        print(f"{change['at']}: {change['before']} -> {change['after']}")
    print(result["said"])
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}", description=main.__doc__, epilog=_EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("domain", metavar="NAME|-", help="a running VM, or - for XML on stdin")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--connect", metavar="URI", help=f"by default {SYSTEM}")
    parser.add_argument("--dry-run", action="store_true", help="change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _inventory(root: str, document: bytes) -> Inventory:
    """Return what the VM of a document is planned on; its flaws go to stderr."""
    from kvmhooks.cli.sources import tell
    from kvmhooks.libvirt.tuning.tune import parts_for
    from kvmhooks.survey.sources import Sources
    from kvmhooks.survey.survey import take

    inventory = take(Sources(host=root), parts=parts_for(document, "domain XML"))
    tell(inventory)
    return inventory


def _answer(root: str) -> bytes:
    """Return the XML on stdin with other pins, or nothing where those that it has are of use."""
    from kvmhooks.cli.documents import read_document
    from kvmhooks.libvirt.tuning.replan import misfit, replan

    document = read_document("-")
    inventory = _inventory(root, document)
    if not misfit(document, inventory):
        return b""
    found = replan(document, inventory)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return found.document


def _move(registry: Registry, arguments: argparse.Namespace) -> dict[str, Any]:
    """Move a VM if it is better elsewhere; what was found, and what was done."""
    from kvmhooks.libvirt.repin import RunningDomain
    from kvmhooks.libvirt.tuning.replan import answer_for

    uri = arguments.connect or SYSTEM
    with RunningDomain.connected(uri, arguments.domain) as running:
        document = running.document()
        held = registry.look().held.get(f"qemu-{running.uuid}")
        if held is None:
            raise IsolationError(f"{arguments.domain}: it holds no CPUs of its own here")
        inventory = _inventory(arguments.root, document)
        answer = answer_for(document, inventory, running.nodes(document))
        found = answer.found
        result = {
            "name": arguments.domain,
            "before": found.before and attrs.asdict(found.before),
            "after": attrs.asdict(found.after),
            "gains": list(found.gains),
            "changes": [],
            "moved": False,
            "warnings": [],
        }
        if not answer.goes:
            return result | {"said": answer.reason}
        gains = f" ({', '.join(found.gains)})" if found.gains else ""
        result["changes"] = [attrs.asdict(change) for change in found.changes]
        result["warnings"] = [*found.warnings]
        if arguments.dry_run:
            return result | {
                "said": f"it would have {found.after} instead of {found.before}{gains}"
            }
        _carry_out(registry, held.claim, found, running)
        return result | {"said": f"moved: {found.after}{gains}", "moved": True}


def _carry_out(registry: Registry, claim: Claim, found: Replanned, running: Any) -> None:
    """Have libvirt pin a VM anew, and its isolation go with it. Raises ``KvmhooksError``."""
    from kvmhooks.isolate.registry.relocation import relocate
    from kvmhooks.values import union

    relocate(
        registry,
        claim,
        union(found.pins.values()),
        lambda: running.pin(found.pins, found.emulator, found.iothreads),
    )
