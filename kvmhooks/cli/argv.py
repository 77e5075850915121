"""``kvmhooks argv VM.toml``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from kvmhooks.cli.planned import parse, plan_of


def main(argv: Sequence[str]) -> int:
    """Print QEMU's arguments for a VM."""
    from kvmhooks.render import qemu_argv
    from kvmhooks.render.shell import command_line

    arguments = parse("argv", main.__doc__ or "", argv)
    argv_of_plan = qemu_argv(plan_of(arguments))
    text = (
        json.dumps(argv_of_plan, indent=2) + "\n" if arguments.json else command_line(argv_of_plan)
    )
    sys.stdout.write(text)
    return 0
