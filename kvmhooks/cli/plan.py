"""``kvmhooks plan VM.toml…``: where VMs would live on a host, as tables, a picture or a drawing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmhooks.cli import sources
from kvmhooks.cli.beside import check
from kvmhooks.cli.drawings import write_drawing
from kvmhooks.errors import InputError, PlanError

if TYPE_CHECKING:
    from kvmhooks.inventory.inventory import Inventory
    from kvmhooks.placement import Together
    from kvmhooks.spec import VmSpec

_EXAMPLES = """\
examples:
  kvmhooks plan vm.toml                        beside the VMs that run on this host
  kvmhooks plan db.toml web.toml               both together, in the order that fits the most
  kvmhooks plan vm.toml --host machine.tar.xz  on a captured host
  kvmhooks plan vm.toml --claims claims.json   beside these: one claim or holding, or a list
  kvmhooks plan vm.toml --svg plan.svg         draw the host with the VM's threads in it
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Print or draw the plans; 1 when a VM does not fit."""
    from kvmhooks.placement import plan_all
    from kvmhooks.spec import load_vm

    arguments = parser_of(verb).parse_args(argv)
    check(verb, arguments)
    specs = [sources.with_accel(arguments, load_vm(file)) for file in arguments.vms]
    _check_names(specs)
    inventory = sources.take(arguments, specs, has_libvirt=True)
    together = plan_all(specs, inventory)
    if arguments.svg is not None and together.plans:
        from kvmhooks.show.plan_map import placed_drawing

        others = inventory.others_of(*(plan.uuid for plan in together.plans))
        drawn = placed_drawing(inventory.host, together.plans, others)
        write_drawing(drawn, arguments.svg)
    if arguments.json:
        _print_json(specs, together)
    elif arguments.svg is None and together.plans:
        _print_text(inventory, together)
    for name, refusal in together.refused.items():
        print(f"{name}: {refusal}", file=sys.stderr)
    return PlanError.exit_code if together.refused else 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}",
        description="Show where VMs would live on a host, and why. Nothing is changed.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("vms", metavar="VM.toml", type=Path, nargs="+", help="the VMs' descriptions")
    sources.add_options(parser)
    add("--json", action="store_true", help="print the plan, or a list of plans, as JSON")
    add("--svg", metavar="FILE", type=Path, help="draw the host with the VMs; - is standard output")
    return parser


def _check_names(specs: Sequence[VmSpec]) -> None:
    """Refuse two VMs of one name: they would be one VM that is described twice."""
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"name: found {twice[0]!r} in {names.count(twice[0])} files, expected one")


def _print_json(specs: Sequence[VmSpec], together: Together) -> None:
    """Print one VM's plan as it is, of several all that is known."""
    from kvmhooks.placement import to_json

    if len(specs) == 1 and together.plans:
        document: Any = to_json(together.plans[0])
    else:
        document = {
            "plans": [to_json(plan) for plan in together.plans],
            "refused": {name: str(refusal) for name, refusal in together.refused.items()},
            "is_proven": together.is_proven,
        }
    print(json.dumps(document, indent=2))


def _print_text(inventory: Inventory, together: Together) -> None:
    """Print a table for each VM, then the host with all of them in place."""
    from kvmhooks.show.plan_map import placed_text
    from kvmhooks.show.plan_text import picture

    for plan in together.plans:
        print(picture(plan))
    if len(together.plans) > 1:
        print(f"planned in this order: {', '.join(plan.name for plan in together.plans)}\n")
    others = inventory.others_of(*(plan.uuid for plan in together.plans))
    sys.stdout.write(placed_text(inventory.host, together.plans, others))
