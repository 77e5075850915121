"""``kvmhooks replan NAME|-``: a VM on better CPUs of this host, if there are any."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from kvmhooks import output
from kvmhooks.cli.roots import used
from kvmhooks.errors import IsolationError

if TYPE_CHECKING:
    from kvmhooks.domain.replan import Replanned
    from kvmhooks.isolate.keeper import Keeper

_EXAMPLES = """\
examples:
  kvmhooks replan web --dry-run     say what would move
  kvmhooks replan web               move the running VM web, and its isolation with it
  kvmhooks replan - < web.xml       print it with pins for this host; nothing if they are right
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Move a running VM of libvirt, or answer for a domain on the standard input."""
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.keeper import Keeper
    from kvmhooks.isolate.store import Store

    arguments = parser_of(verb).parse_args(argv)
    keeper = Keeper(Door(arguments.root), Store(arguments.root))
    if arguments.domain == "-":
        with used(arguments.root):
            answer = _answer(keeper, arguments.root)
        output.document(answer)
        return 0
    with used(arguments.root):
        said = _move(keeper, arguments)
    if arguments.json:
        print(json.dumps(said, indent=2))
        return 0
    for change in said["changes"]:
        print(f"{change['at']}: {change['before']} -> {change['after']}")
    print(said["said"])
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}", description=main.__doc__, epilog=_EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("domain", metavar="NAME|-", help="a running VM, or - for XML on stdin")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--connect", metavar="URI", default="qemu:///system")
    parser.add_argument("--dry-run", action="store_true", help="change nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _answer(keeper: Keeper, root: str) -> bytes:
    """Return the XML on stdin with other pins, or nothing where those that it has are of use."""
    from kvmhooks.cli.documents import read_document
    from kvmhooks.domain.replan import misfit, replan
    from kvmhooks.host import PLANNED, read

    document = read_document("-")
    host = read(root, PLANNED)
    claims = keeper.claims()
    return replan(document, host, claims).document if misfit(document, host, claims) else b""


def _move(keeper: Keeper, arguments: argparse.Namespace) -> dict[str, Any]:
    """Move a VM if it is better elsewhere; what was found, and what was done."""
    from kvmhooks.domain.replan import misfit, replan
    from kvmhooks.host import PLANNED, read
    from kvmhooks.live.moving import Running

    host = read(arguments.root, PLANNED)
    claims = keeper.claims()
    with Running.connected(arguments.connect, arguments.domain) as running:
        document = running.document()
        held = keeper.look().held.get(f"qemu-{running.uuid}")
        if held is None:
            raise IsolationError(f"{arguments.domain}: it holds no CPUs of its own here")
        found = replan(document, host, claims)
        why = misfit(document, host, claims)
        stays = _reason_to_stay(found, running.nodes(document))
        is_better = bool(why) or found.before is None or found.after < found.before
        said = {
            "name": arguments.domain,
            "before": found.before and attrs.asdict(found.before),
            "after": attrs.asdict(found.after),
            "changes": [],
            "moved": False,
        }
        if not is_better:
            return said | {"said": f"nothing would be better: {found.before} as it is"}
        if stays:
            return said | {"said": stays}
        said["changes"] = [attrs.asdict(change) for change in found.changes]
        if arguments.dry_run:
            return said | {"said": f"it would have {found.after} instead of {found.before}"}
        _carry_out(keeper, held.claim.key, found, running)
        return said | {"said": f"moved: {found.after}", "moved": True}


def _reason_to_stay(found: Replanned, memory: frozenset[int]) -> str:
    """Why a running VM cannot go: its memory does not go along. Empty when it can."""
    if not memory or not found.nodes or set(found.nodes) <= memory:
        return ""
    nodes = ",".join(map(str, sorted(memory)))
    return (
        f"it would have {found.after} on node {found.nodes}, but its memory would stay on node "
        f"{nodes}: stop it and run `kvmhooks tune NAME --apply`"
    )


def _carry_out(keeper: Keeper, key: str, found: Replanned, running: Any) -> None:
    """Reserve the CPUs, give up the partitions that keep the vCPUs, pin, and isolate anew."""
    from kvmhooks.values import union

    held = keeper.look().held[key]
    keeper.reserve(held.claim.on(union(found.pins.values())), 60.0)
    keeper.loosen(key)
    try:
        running.pin(found.pins, found.emulator, found.iothreads)
    finally:
        keeper.tighten(key)
