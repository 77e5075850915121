"""What the verbs share that print something of a plan: a vm.toml, and a host to plan for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmhooks.placement import Plan


def parse(verb: str, does: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of ``kvmhooks VERB VM.toml [--host DIR] [--json]``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", description=does, allow_abbrev=False)
    parser.add_argument("vm", metavar="VM.toml", type=Path, help="the VM's description")
    parser.add_argument("--host", metavar="DIR", default="/", help="plan for a captured host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan; what is wrong with a captured host goes to stderr."""
    from kvmhooks.host import read
    from kvmhooks.placement import plan
    from kvmhooks.spec import load_vm

    spec = load_vm(arguments.vm)
    host = read(arguments.host)
    for warning in host.warnings:
        print(f"{arguments.host}: {warning}", file=sys.stderr)
    return plan(spec, host)
