"""``kvmhooks hooks install|uninstall|status``: the libvirt hook of this host."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from kvmhooks.cli.beside import check
from kvmhooks.cli.roots import used
from kvmhooks.errors import IsolationError

if TYPE_CHECKING:
    from kvmhooks.isolate.hook.installation import InstalledHook
    from kvmhooks.isolate.record.state import Held, State


_PYTHON: Final = "/usr/bin/python3"


def main(verb: str, argv: Sequence[str]) -> int:
    """Install, remove or examine the hook; ``status`` gives 1 when it would not run."""
    from kvmhooks.isolate.hook import installation

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    commands: Sequence[str] = ()
    state = "the hook is not installed"
    with used(arguments.root):
        if arguments.action == "install":
            installation.install(arguments.root, arguments.python or _PYTHON)
        elif arguments.action == "uninstall":
            state = _removed(installation.status(arguments.root))
            _let_go(arguments.root, is_forced=arguments.force)
            installation.uninstall(arguments.root)
        if arguments.action != "status":
            commands = installation.reload_daemons(arguments.root)
        found = installation.status(arguments.root)
    for command in commands:
        print(f"not known yet: run `{command}`")
    if arguments.json:
        print(json.dumps(found._asdict(), indent=2))
    elif found.path:
        then = ", and then the script that was there before" if found.chained else ""
        print(f"{found.path}: kvmhooks {found.version}{then}")
    else:
        print("; ".join((state, *found.problems[1:])))
    if arguments.action == "uninstall":
        return 0
    for problem in found.problems if not arguments.json and found.path else ():
        print(problem)
    return 1 if found.problems else 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("action", choices=("install", "uninstall", "status"))
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--python", metavar="FILE",
                        help=f"the interpreter that will run it, by default {_PYTHON}")  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="uninstall: give back before what VMs hold")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _removed(before: InstalledHook) -> str:
    """Return what has become of the hook that was installed, if one was."""
    if not before.path:
        return "the hook was not installed: found none to remove"
    back = ", and the script that was there before is back" if before.chained else ""
    return f"{before.path}: the hook is removed{back}"


def _let_go(root: str, *, is_forced: bool) -> None:
    """Give back what VMs that are gone hold; of those that run only if that is forced.

    Without the hook nobody would give it back when they end. Raises ``IsolationError`` with what
    is held, and ``RestoreError`` when something could not be given back.
    """
    from kvmhooks.cli import isolation

    registry = isolation.registry_of(root)
    if registry.look().is_empty:
        return
    report = registry.undo(None) if is_forced else registry.reconcile()
    state = registry.look()
    if state.held:
        told = [_told(held, state) for held in state.held.values()]
        raise IsolationError("\n".join([*told, _REMEDY]))
    isolation.check(report, registry)


_REMEDY = "stop them before, or have it given back under them: `kvmhooks hooks uninstall --force`"


def _told(held: Held, state: State) -> str:
    """Return one line of what a VM holds."""
    from kvmhooks.cli.status import pages_of
    from kvmhooks.isolate.kinds.bound_functions import FunctionDemand

    claim = held.claim
    bound = claim.asks_of(FunctionDemand.KIND)
    pages = sum(pages_of(claim.key, state).values())
    what = [
        f"CPUs {claim.exclusive}" if claim.exclusive else "",
        f"devices {', '.join(bound)}" if bound else "",
        f"{pages} huge pages" if pages else "",
    ]
    owns = ", ".join(filter(None, what)) or "a claim"
    return f"{claim.name}: found it running (process {held.holder.pid}) with {owns}, expected none"
