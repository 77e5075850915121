"""The base of a plan: a host, captured or this one, and what other VMs hold of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvmhooks.cli.documents import read_json
from kvmhooks.errors import HostError

if TYPE_CHECKING:
    from kvmhooks.host import Host
    from kvmhooks.inventory.usage import Holding
    from kvmhooks.machine.target import Target
    from kvmhooks.spec import VmSpec


def add_options(parser: argparse.ArgumentParser) -> None:
    """Take ``--host``, ``--claims``, ``--qemu`` and ``--libvirt``."""
    add = parser.add_argument
    add("--host", metavar="DIR|FILE.tar", default="/", help="plan for a captured host")
    add("--claims", metavar="FILE", help="the holdings of other VMs, instead of the live ones")
    add("--qemu", metavar="VERSION", type=_version, help="plan for this QEMU")
    add("--libvirt", metavar="VERSION", type=_version, help="and for this libvirt; 0: for none")
    add("--capabilities", metavar="FILE", help="the output of `virsh domcapabilities` there")


def read_ground(
    arguments: argparse.Namespace, specs: Sequence[VmSpec]
) -> tuple[Host, tuple[Holding, ...]]:
    """Return the host as far as these VMs' plans look at it, and what others hold of it.

    The host's flaws go to stderr. Raises ``HostError`` and ``InputError``.
    """
    from kvmhooks.host import read
    from kvmhooks.placement import parts_of

    parts = dict.fromkeys(part for spec in specs for part in parts_of(spec))
    host = read(arguments.host, tuple(parts))
    for warning in host.warnings:
        print(f"{arguments.host}: {warning}", file=sys.stderr)
    if arguments.claims is not None:
        return host, _read_claims(arguments.claims)
    return host, _live_ones() if arguments.host == "/" else ()


def _live_ones() -> tuple[Holding, ...]:
    """Return what the VMs hold that run here; print it where that is not for us to know."""
    from kvmhooks.survey.running import live_holdings

    try:
        return live_holdings()
    except HostError as error:
        print(f"warning: {error}; planned as if no VM ran", file=sys.stderr)
        return ()


def _read_claims(name: str) -> tuple[Holding, ...]:
    """Return the claims or holdings of a file: one, or a list of them."""
    from kvmhooks.inventory.usage import from_json

    document = read_json(name)
    return tuple(
        from_json(item) for item in (document if isinstance(document, list) else [document])
    )


def _version(text: str) -> tuple[int, int]:
    from kvmhooks.machine.target import parse_version

    try:
        return parse_version(text)
    except ValueError as error:
        expected = 'a version such as "9.2"'
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from error


def target_of(arguments: argparse.Namespace, spec: VmSpec, *, has_libvirt: bool) -> Target:
    """Return the target that was named; else the one that is installed here, for this machine."""
    import attrs

    from kvmhooks.machine.target import OLDEST
    from kvmhooks.survey.programs_here import target_for

    if arguments.libvirt is not None:
        has_libvirt = arguments.libvirt != (0, 0)
    if arguments.host == "/" and arguments.qemu is None:
        target = target_for(spec, has_libvirt=has_libvirt)
    else:
        target = attrs.evolve(OLDEST, qemu=arguments.qemu or OLDEST.qemu)
    if not has_libvirt:
        return attrs.evolve(target, libvirt=None)
    domain = None
    if arguments.capabilities is not None:
        from kvmhooks.cli.documents import read_document
        from kvmhooks.libvirt.capabilities import told_by

        domain = told_by(read_document(arguments.capabilities), arguments.capabilities)
    return attrs.evolve(target, libvirt=arguments.libvirt or target.libvirt, domain=domain)
