"""``kvmhooks plan|xml|argv|claim VM.toml``: something of the plan of a VM for a host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(verb: str, argv: Sequence[str]) -> int:
    """Print what ``verb`` names; what is wrong with a captured host goes to stderr."""
    from kvmhooks.host import read
    from kvmhooks.placement import plan
    from kvmhooks.render.printed import printed
    from kvmhooks.spec import load_vm

    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("vm", metavar="VM.toml", type=Path, help="the VM's description")
    parser.add_argument("--host", metavar="DIR", default="/", help="plan for a captured host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    spec = load_vm(arguments.vm)
    host = read(arguments.host)
    for warning in host.warnings:
        print(f"{arguments.host}: {warning}", file=sys.stderr)
    sys.stdout.write(printed(plan(spec, host), verb, as_json=arguments.json))
    return 0
