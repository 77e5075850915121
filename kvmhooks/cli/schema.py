"""``kvmhooks schema``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the JSON Schema of vm.toml, with which editors complete and check it."""
    from kvmhooks.spec.schema import schema

    parser_of(verb).parse_args(argv)
    print(json.dumps(schema(), indent=2))
    return 0


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    return argparse.ArgumentParser(prog=f"kvmhooks {verb}", description=main.__doc__)
