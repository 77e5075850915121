"""``kvmhooks xml VM.toml``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from kvmhooks.cli.planned import parse, plan_of


def main(argv: Sequence[str]) -> int:
    """Print the libvirt domain XML for a VM."""
    from kvmhooks.render import domain_xml

    arguments = parse("xml", main.__doc__ or "", argv)
    xml = domain_xml(plan_of(arguments))
    text = json.dumps({"xml": xml}) + "\n" if arguments.json else xml
    sys.stdout.write(text)
    return 0
