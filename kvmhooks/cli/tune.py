"""``kvmhooks tune DOMAIN.xml|-|NAME``: a libvirt domain made better, and nothing of it lost."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import attrs

from kvmhooks import output
from kvmhooks.cli import sources
from kvmhooks.cli.beside import SYSTEM, check, is_file
from kvmhooks.cli.documents import read_document
from kvmhooks.errors import UsageError
from kvmhooks.libvirt.tuning.tune import CONCERNS, Tuned
from kvmhooks.spec.profiles import PROFILES

_DESCRIPTION = """\
Print a libvirt domain's XML with what improves it for this host; every other byte stays.

It tells on stderr what that gains. Pins stay that are as good as the planner's, and so
do those of a VM that OpenStack Nova, oVirt, KubeVirt, Harvester or Proxmox VE places, or that does
not fit this host: the advice says which, and why. Of a domain that kvmhooks wrote, only the place
is tuned."""

_EXAMPLES = """\
examples:
  kvmhooks tune web --diff              say what would be better, and what that gains
  kvmhooks tune web --apply             define it; its next start has it
  kvmhooks tune - --keep-pins < web.xml all but the pins
  kvmhooks tune web --profile realtime  and what the profile says where the domain does not
"""


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the tuned XML, or what ``--diff``, ``--check``, ``--json`` or ``--apply`` ask for."""
    from kvmhooks.libvirt.tuning.tune import parts_for, tune

    arguments = parser_of(verb).parse_args(argv)
    if arguments.profile is not None and arguments.profile not in PROFILES:
        known = ", ".join(PROFILES)
        raise UsageError(f"--profile: found {arguments.profile!r}, expected one of {known}")
    only = tuple(CONCERNS) if arguments.only is None else _concerns(arguments.only)
    check(verb, arguments)
    document = read_document(arguments.domain) if is_file(arguments.domain) else _dump(arguments)
    tuned = tune(
        document,
        sources.take(arguments, (), parts=parts_for(document, arguments.domain)),
        name=arguments.domain,
        only=only,
        keep_pins=arguments.keep_pins,
        repin=arguments.repin,
        profile=arguments.profile,
    )
    gains = f"gains: {', '.join(tuned.gains)}" if tuned.gains else "nothing to gain"
    print(gains, file=sys.stderr)
    _say(arguments, tuned)
    for sentence in tuned.advice:
        print(f"advice: {sentence}", file=sys.stderr)
    if arguments.apply and tuned.changes:
        from kvmhooks.libvirt.definitions import define_again

        define_again(arguments.connect or SYSTEM, tuned.document)
        print(f"{arguments.domain}: defined; its next start has it", file=sys.stderr)
    return int(arguments.check and bool(tuned.changes))


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}", description=_DESCRIPTION, epilog=_EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("domain", metavar="DOMAIN", help="an XML file, - for stdin, or a name")
    sources.add_host_options(parser)
    parser.add_argument("--only", metavar="CONCERN,…", help=f"some of {','.join(CONCERNS)}")
    parser.add_argument("--keep-pins", action="store_true", help="pins that are there stay")
    parser.add_argument(
        "--repin", action="store_true", help="change those that Nova or another program chose, too"
    )
    parser.add_argument("--profile", metavar="NAME", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--connect", metavar="URI", help=f"by default {SYSTEM}")
    parser.add_argument("--diff", action="store_true", help="print what changes instead")
    parser.add_argument("--check", action="store_true", help="exit 1 if it could be better")
    parser.add_argument("--apply", action="store_true", help="define the result in libvirt")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _concerns(text: str) -> tuple[str, ...]:
    concerns = tuple(text.split(","))
    unknown = [word for word in concerns if word not in CONCERNS]
    if unknown:
        raise UsageError(f"--only: found {unknown[0]!r}, expected some of {','.join(CONCERNS)}")
    return concerns


def _dump(arguments: argparse.Namespace) -> bytes:
    """Return a domain's XML from libvirt: with its secrets only if it is to be defined again."""
    from kvmhooks.libvirt.definitions import dump

    return dump(arguments.connect or SYSTEM, arguments.domain, with_secrets=arguments.apply)


def _say(arguments: argparse.Namespace, tuned: Tuned) -> None:
    """Print what was asked for; a document with secrets from libvirt is not printed."""
    from kvmhooks.libvirt.edit.difference import hide, unified

    if arguments.json:
        changes = [_hidden(attrs.asdict(change)) for change in tuned.changes]
        document = {
            "gains": list(tuned.gains),
            "changes": changes,
            "advice": list(tuned.advice),
        }
        if not (arguments.apply or arguments.check or arguments.diff):
            document["xml"] = tuned.document.decode(errors="replace")
        print(json.dumps(document, indent=2))
    elif arguments.diff or arguments.check or arguments.apply:
        for change in tuned.changes:
            print(hide(str(change)))
        if arguments.diff and tuned.changes:
            output.document(unified(tuned.pieces, arguments.domain))
    else:
        output.document(tuned.document)


def _hidden(change: dict[str, str | None]) -> dict[str, str | None]:
    from kvmhooks.libvirt.edit.difference import hide

    return {key: None if value is None else hide(value) for key, value in change.items()}
