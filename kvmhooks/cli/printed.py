"""``kvmhooks plan|xml|argv|claim VM.toml``: something of the plan of a VM for a host."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmhooks.placement.target import Target
    from kvmhooks.spec import VmSpec


def main(verb: str, argv: Sequence[str]) -> int:
    """Print what ``verb`` names; what is wrong with a captured host goes to stderr."""
    from kvmhooks.host import read
    from kvmhooks.placement import parts_of, plan
    from kvmhooks.render.printed import printed
    from kvmhooks.spec import load_vm

    parser = argparse.ArgumentParser(prog=f"kvmhooks {verb}", allow_abbrev=False)
    parser.add_argument("vm", metavar="VM.toml", type=Path, help="the VM's description")
    parser.add_argument("--host", metavar="DIR", default="/", help="plan for a captured host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--qemu", metavar="VERSION", type=_version, help="plan for this QEMU")
    parser.add_argument(
        "--libvirt", metavar="VERSION", type=_version, help="and for this libvirt; 0: for none"
    )
    arguments = parser.parse_args(argv)
    spec = load_vm(arguments.vm)
    host = read(arguments.host, parts_of(spec))
    for warning in host.warnings:
        print(f"{arguments.host}: {warning}", file=sys.stderr)
    target = _target(arguments, spec, has_libvirt=verb in {"plan", "xml", "claim"})
    sys.stdout.write(printed(plan(spec, host, target=target), verb, as_json=arguments.json))
    return 0


def _version(text: str) -> tuple[int, int]:
    from kvmhooks.placement.target import parse_version

    try:
        return parse_version(text)
    except ValueError as error:
        expected = 'a version such as "9.2"'
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from error


def _target(arguments: argparse.Namespace, spec: VmSpec, *, has_libvirt: bool) -> Target:
    """What was said will run the VM; else what is installed here, for this machine."""
    import attrs

    from kvmhooks.live.target import target_for
    from kvmhooks.placement.target import OLDEST

    is_here = arguments.host == "/" and arguments.qemu is None
    target = target_for(spec) if is_here else OLDEST
    if arguments.qemu is not None:
        target = attrs.evolve(target, qemu=arguments.qemu)
    if arguments.libvirt is not None:
        target = attrs.evolve(target, libvirt=arguments.libvirt)
    none = arguments.libvirt == (0, 0) or (arguments.libvirt is None and not has_libvirt)
    return attrs.evolve(target, libvirt=None) if none else target
