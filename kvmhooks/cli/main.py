"""``kvmhooks VERB``: each verb is a module of this package with ``main(verb, argv) -> int``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Final

from kvmhooks.exits import exit_code_of
from kvmhooks.version import VERSION

VERBS = {
    "argv": ("kvmhooks.cli.printed", "print QEMU's arguments for a vm.toml"),
    "claim": ("kvmhooks.cli.printed", "print what a vm.toml's VM asks of the host"),
    "completion": ("kvmhooks.cli.manual", "print the completions of bash, zsh or fish"),
    "devices": (
        "kvmhooks.cli.devices",
        "list what can be passed through, and what speaks against it",
    ),
    "host": ("kvmhooks.cli.host", "show this machine or a captured one, as text, JSON or SVG"),
    "import": ("kvmhooks.cli.importing", "make the vm.toml of a libvirt domain XML"),
    "hooks": ("kvmhooks.cli.hooks", "install, remove or examine the libvirt hook"),
    "install-units": ("kvmhooks.cli.units", "install systemd's units for VMs of kvm-launch"),
    "isolate": ("kvmhooks.cli.isolate", "write an isolation policy into a libvirt domain"),
    "man": ("kvmhooks.cli.manual", "show a page of the manual that came with kvmhooks"),
    "plan": ("kvmhooks.cli.plan", "show where VMs would live on a host together, and why"),
    "profiles": ("kvmhooks.cli.profiles", "list the profiles, or show what one sets and why"),
    "reconcile": ("kvmhooks.cli.isolation", "give back what VMs that are gone still hold"),
    "replan": ("kvmhooks.cli.replan", "move a running VM to better CPUs, if there are any"),
    "schema": ("kvmhooks.cli.schema", "print the JSON Schema of vm.toml"),
    "simulate": ("kvmhooks.cli.simulate", "list every write that a start and a stop would make"),
    "status": ("kvmhooks.cli.status", "show what VMs hold of this host, and whether it is so"),
    "tune": ("kvmhooks.cli.tune", "make a libvirt domain better, and lose nothing of it"),
    "undo": ("kvmhooks.cli.isolation", "give back what a running VM holds"),
    "vfs": ("kvmhooks.cli.vfs", "show or set what a card lets its virtual functions do"),
    "xml": ("kvmhooks.cli.printed", "print the libvirt domain XML for a vm.toml"),
}
"""Verb: the module that carries it out, and what it does."""

FORMER: Final = {"functions": "vfs"}
"""The names that verbs had in a92f6b5, and hooks and supervisors of all versions know."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and give its exit code. Every failure is one message on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    told = {"--version": f"kvmhooks {VERSION}\n", "--help": _usage(), "-h": _usage()}
    if words[:1] and words[0] in told:
        return exit_code_of(lambda: _tell(told[words[0]]), interrupted="interrupted")
    words[:1] = [FORMER.get(word, word) for word in words[:1]]
    if not words or words[0] not in VERBS:
        found = repr(words[0]) if words else "nothing"
        print(f"found {found}, expected a verb\n{_usage()}", end="", file=sys.stderr)
        return 2
    verb, *rest = words
    module = importlib.import_module(VERBS[verb][0])
    return exit_code_of(lambda: int(module.main(verb, rest)), interrupted="interrupted")


def _tell(text: str) -> int:
    print(text, end="")
    return 0


def _usage() -> str:
    lines = ["usage: kvmhooks VERB [options]", "", "verbs (kvmhooks VERB --help tells more):"]
    lines += [f"  {verb:<13} {does}" for verb, (_, does) in VERBS.items()]
    lines += ["", "kvm-launch VM.toml boots a VM."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
