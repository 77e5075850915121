"""``kvmhooks reconcile|undo``: giving back what is held of this host."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvmhooks.cli.roots import require_host, used
from kvmhooks.errors import InputError, RestoreError

if TYPE_CHECKING:
    from kvmhooks.isolate.record.report import Report
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.registry.registry import Registry


def main(verb: str, argv: Sequence[str]) -> int:
    """Carry out one of the two verbs; 4 when the host is not restored completely."""
    arguments = parser_of(verb).parse_args(argv)
    from kvmhooks.isolate.hook.entry import retry

    registry = registry_of(arguments.root)
    with used(arguments.root):
        require_host(arguments.root)
        report = _carry_out(verb, registry, arguments)
    print(json.dumps(_results(report), indent=2) if arguments.json else str(report))
    with used(arguments.root):
        if registry.owes(report):
            retry(arguments.root)
        check(report, registry)
    return 0


def _carry_out(verb: str, registry: Registry, arguments: argparse.Namespace) -> Report:
    """Do what ``reconcile`` or ``undo`` asks for."""
    if verb == "reconcile":
        return registry.reconcile()
    return registry.undo(None if arguments.all else key_of(registry.look(), arguments.name))


def registry_of(root: str) -> Registry:
    """Return the registry of a host; this kvmhooks does what the hook's own modules cannot do."""
    from kvmhooks.isolate.record.store import Store
    from kvmhooks.isolate.registry.registry import Registry
    from kvmhooks.isolate.system.system import System

    helper = [sys.executable, "-I", "-m", "kvmhooks.cli.main"]
    return Registry(System(root), Store(root), helper=helper)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    if verb == "undo":
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("name", metavar="NAME", nargs="?", help="a VM's name or UUID")
        which.add_argument("--all", action="store_true", help="every VM")
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def key_of(state: State, name: str) -> str:
    """Return the key of the claim with this name or UUID. Raises ``InputError`` without one."""
    held = state.held
    found = [key for key, entry in held.items() if name in {entry.claim.name, entry.claim.uuid}]
    if len(found) != 1:
        names = ", ".join(entry.claim.name for entry in held.values()) or "none"
        raise InputError(f"found {len(found)} claims of {name!r}, expected one of: {names}")
    return found[0]


def _results(report: Report) -> dict[str, Any]:
    return {
        "results": [result.to_json() for result in report.results],
        "untouched": report.untouched,
    }


def check(report: Report, registry: Registry) -> None:
    """Raise ``RestoreError`` when something is left that no claim holds."""
    left = registry.left_over(report)
    if left:
        message = "; ".join(f"{item.key}: {item.why}" for item in left)
        raise RestoreError(f"not restored: {message}")
