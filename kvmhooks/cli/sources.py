"""The options that say what a plan is made on, and the inventory that is taken by them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvmhooks.cli.beside import LIVE, check_sources
from kvmhooks.cli.documents import read_document, read_json
from kvmhooks.errors import InputError, KvmhooksError

if TYPE_CHECKING:
    from kvmhooks.inventory.inventory import Inventory
    from kvmhooks.inventory.usage import Holding
    from kvmhooks.spec import VmSpec
    from kvmhooks.survey.sources import Sources


def add_options(parser: argparse.ArgumentParser) -> None:
    """Take what stands for the host, its VMs and the programs that run them."""
    add = parser.add_argument
    add_host_options(parser)
    add("--qemu", metavar="VERSION", type=_version, help="plan for this QEMU")
    add("--libvirt", metavar="VERSION", type=_version, help="and for this libvirt; 0: for none")
    add("--capabilities", metavar="FILE", help="the output of `virsh domcapabilities` there")
    add("--accel", choices=("auto", "kvm", "tcg"), help="instead of what the file says")
    add("--assume-kvm", action="store_true", help="KVM works on the captured host")


def add_host_options(parser: argparse.ArgumentParser) -> None:
    """Take what stands for the host and its VMs."""
    add = parser.add_argument
    add("--host", metavar="DIR|FILE.tar", default=LIVE, help="plan for a captured host")
    add("--claims", metavar="FILE", help="the holdings of other VMs, instead of the live ones")
    add("--defined", action="store_true", help="domains that are only defined hold theirs, too")
    add("--run-dir", metavar="DIR", type=Path, help="where kvm-launch's VMs have their sockets")


def take(
    arguments: argparse.Namespace,
    specs: Sequence[VmSpec],
    *,
    has_libvirt: bool = False,
    parts: Sequence[str] = (),
) -> Inventory:
    """Return the inventory for these VMs; its flaws go to stderr. Raises ``KvmhooksError``."""
    from kvmhooks.survey.survey import take as take_inventory

    sources = sources_of(arguments, has_libvirt=has_libvirt)
    inventory = take_inventory(sources, *specs, parts=parts)
    tell(inventory)
    return inventory


def tell(inventory: Inventory) -> None:
    """Tell stderr the flaws and gaps of an inventory."""
    for warning in inventory.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def sources_of(arguments: argparse.Namespace, *, has_libvirt: bool = False) -> Sources:
    """Return the sources that were named; a verb may have some of the options only.

    Raises ``UsageError`` for an option that would change nothing, and ``InputError``.
    """
    from kvmhooks.survey.sources import Sources

    given = vars(arguments)
    check_sources(arguments)
    words = None
    if given.get("capabilities") is not None:
        from kvmhooks.libvirt.capabilities import told_by

        words = told_by(read_document(arguments.capabilities), arguments.capabilities)
    return Sources(
        host=arguments.host,
        claims=None if arguments.claims is None else read_holdings(arguments.claims),
        qemu=given.get("qemu"),
        libvirt=given.get("libvirt"),
        has_libvirt=has_libvirt,
        capabilities=words,
        run_dir=arguments.run_dir,
        assumes_kvm=given.get("assume_kvm", False),
        counts_defined=arguments.defined,
    )


def read_holdings(name: str) -> tuple[Holding, ...]:
    """Return the claims or holdings of a file: one, or a list of them; each VM is told once.

    Raises ``KvmhooksError``.
    """
    from kvmhooks.inventory.usage import from_json, merged

    document = read_json(name)
    items = document if isinstance(document, list) else [document]
    try:
        return merged([from_json(item) for item in items])
    except KvmhooksError as error:
        raise InputError(f"{name}: {error}") from error


def with_accel(arguments: argparse.Namespace, spec: VmSpec) -> VmSpec:
    """Return a VM on the accelerator that was given, if any."""
    if arguments.accel is None:
        return spec
    import attrs

    return attrs.evolve(spec, machine=attrs.evolve(spec.machine, accel=arguments.accel))


def _version(text: str) -> tuple[int, int]:
    from kvmhooks.machine.target import parse_version

    try:
        return parse_version(text)
    except ValueError as error:
        expected = 'a version such as "9.2"'
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from error
