"""``kvmhooks hooks install|uninstall|status``: the libvirt hook of this host."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from kvmhooks.cli.roots import used


def main(verb: str, argv: Sequence[str]) -> int:
    """Install, remove or examine the hook; ``status`` gives 1 when it would not run."""
    from kvmhooks.isolate import installation

    arguments = parser_of(verb).parse_args(argv)
    commands: Sequence[str] = ()
    with used(arguments.root):
        if arguments.action == "install":
            installation.install(arguments.root, arguments.python)
        elif arguments.action == "uninstall":
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
        print("the hook is not installed")
    if arguments.action == "uninstall":
        return 0
    for problem in found.problems if not arguments.json and found.path else ():
        print(problem)
    return 1 if found.problems else 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("action", choices=("install", "uninstall", "status"))
    parser.add_argument("--root", metavar="DIR", default="/", help="a host's root directory")
    parser.add_argument("--python", metavar="FILE", default="/usr/bin/python3",
                        help="the interpreter that will run it")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
