"""``kvmhooks xml|argv|claim VM.toml``: something of the plan of a VM for a host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvmhooks.cli import sources
from kvmhooks.output import document


def main(verb: str, argv: Sequence[str]) -> int:
    """Print what ``verb`` names."""
    from kvmhooks.placement import plan
    from kvmhooks.show.printed import printed, untold
    from kvmhooks.spec import load_vm

    arguments = parser_of(verb).parse_args(argv)
    spec = sources.with_accel(arguments, load_vm(arguments.vm))
    decided = plan(spec, sources.take(arguments, [spec], has_libvirt=verb != "argv"))
    document(printed(decided, verb, as_json=arguments.json))
    for sentence in untold(decided, verb):
        print(f"warning: {sentence}", file=sys.stderr)
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("vm", metavar="VM.toml", type=Path, help="the VM's description")
    sources.add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
