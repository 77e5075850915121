"""``kvmhooks man [PAGE]`` and ``kvmhooks completion SHELL``: what came with the package.

Where only the programs are linked into ``PATH``, as by ``uv tool install``, neither man(1) nor a
shell finds the pages and completions beside them by itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kvmhooks import distribution
from kvmhooks.errors import InputError, UsageError

MAN = Path("/usr/bin/man")


def main(verb: str, argv: Sequence[str]) -> int:
    """Show a page, or print where it is; print a shell's completions."""
    arguments = parser_of(verb).parse_args(argv)
    if verb == "completion":
        for program in distribution.PROGRAMS:
            path = distribution.completion(arguments.shell, program)
            print(_found(path, f"completions of {arguments.shell}").read_text())
        return 0
    path = _found(distribution.page(arguments.page), f"page {arguments.page}")
    if arguments.path:
        print(path)
        return 0
    if not os.access(MAN, os.X_OK):
        raise InputError(f"{MAN}: found nothing, expected man(1); the page is {path}")
    return int(subprocess.run([str(MAN), str(path)], check=False).returncode != 0)


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    if verb == "completion":
        parser.add_argument("shell", choices=tuple(distribution.COMPLETIONS))
        parser.epilog = """eval "$(kvmhooks completion bash)", in ~/.bashrc, and so with zsh;
kvmhooks completion fish | source, in ~/.config/fish/config.fish"""
    else:
        parser.add_argument(
            "page", nargs="?", choices=tuple(distribution.PAGES), default="kvmhooks"
        )
        parser.add_argument("--path", action="store_true", help="print where the page is")
    return parser


def _found(path: Path | None, what: str) -> Path:
    if path is None:
        raise UsageError(
            f"found no {what} beside {distribution.PACKAGE}, expected it to be installed"
        )
    return path
