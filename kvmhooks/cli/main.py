"""``kvmhooks VERB``: each verb is a module of this package with ``main(argv) -> int``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from kvmhooks.errors import KvmhooksError
from kvmhooks.version import VERSION

VERBS = {
    "argv": ("kvmhooks.cli.argv", "print QEMU's arguments for a vm.toml"),
    "plan": ("kvmhooks.cli.plan", "show where a vm.toml's VM would live on a host, and why"),
    "schema": ("kvmhooks.cli.schema", "print the JSON Schema of vm.toml"),
    "xml": ("kvmhooks.cli.xml", "print the libvirt domain XML for a vm.toml"),
}
"""Verb: the module that carries it out, and what it does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and give its exit code. Every failure is one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--version"], ["-V"]):
        print(f"kvmhooks {VERSION}")
        return 0
    if words[:1] in (["--help"], ["-h"]):
        print(_usage(), end="")
        return 0
    if not words or words[0] not in VERBS:
        found = repr(words[0]) if words else "nothing"
        print(f"found {found}, expected a verb\n{_usage()}", end="", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(VERBS[words[0]][0]).main(words[1:]))
    except KvmhooksError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone: nobody is left to tell
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1


def _usage() -> str:
    lines = ["usage: kvmhooks VERB [options]", "", "verbs (kvmhooks VERB --help tells more):"]
    lines += [f"  {verb:<8} {does}" for verb, (_, does) in VERBS.items()]
    lines += ["", "kvm-launch VM.toml boots a VM."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
