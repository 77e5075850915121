"""``kvmhooks host``: show this machine, or a captured one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from kvmhooks.cli.beside import check
from kvmhooks.cli.drawings import write_drawing

_EXAMPLES = """\
examples:
  kvmhooks host                              show this machine
  kvmhooks host --json | jq .nodes           the same as JSON
  kvmhooks host --svg machine.svg            draw it
  kvmhooks host --capture machine.tar.xz     capture it, to plan for it elsewhere or to report a bug
  kvmhooks host --root machine.tar.xz        show what was captured
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Print, draw or capture a host."""
    from kvmhooks.host import read, to_json
    from kvmhooks.host.picture import picture
    from kvmhooks.qemu.capabilities import describe, probe

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    if arguments.capture is not None:
        from kvmhooks.host.capture import capture

        host = capture(arguments.capture, arguments.root, redacted=not arguments.unredacted)
        print(f"{arguments.capture}: captured", file=sys.stderr)
    else:
        host = read(arguments.root)
    if arguments.svg is not None:
        from kvmhooks.host.drawing import draw

        write_drawing(draw(host), arguments.svg)
    programs = probe() if arguments.root == "/" and arguments.capture is None else None
    if arguments.json:
        document = to_json(host)
        document["programs"] = None if programs is None else programs.to_json()
        print(json.dumps(document, indent=1))
    elif arguments.svg is None and arguments.capture is None:
        sys.stdout.write(picture(host))
        if programs is not None:
            sys.stdout.write("".join(f"{line}\n" for line in describe(programs)))
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}",
        description="Show this machine, or a captured one: CPUs, caches, nodes, devices, KVM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--root", metavar="DIR|FILE.tar", default="/", help="show a captured host")
    add("--json", action="store_true", help="print the contract's JSON")
    add("--svg", metavar="FILE", type=Path, help="draw the machine; - is standard output")
    add("--capture", metavar="DIR|FILE.tar", type=Path, help="write what was read as a tree")
    add(
        "--unredacted",
        action="store_true",
        help="leave serial numbers, MACs and UUIDs in the capture",
    )
    return parser
