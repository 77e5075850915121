"""``kvmhooks plan VM.toml``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from kvmhooks.cli.planned import parse, plan_of


def main(argv: Sequence[str]) -> int:
    """Show where a VM would live on a host, and why."""
    from kvmhooks.placement import to_json
    from kvmhooks.render.picture import picture

    arguments = parse("plan", main.__doc__ or "", argv)
    plan = plan_of(arguments)
    text = json.dumps(to_json(plan), indent=2) + "\n" if arguments.json else picture(plan)
    sys.stdout.write(text)
    return 0
