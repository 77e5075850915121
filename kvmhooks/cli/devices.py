"""``kvmhooks devices``: what can be passed through to a VM, and what speaks against it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvmhooks.devices import Judged
    from kvmhooks.devices.rom import Image

_EXAMPLES = """\
examples:
  kvmhooks devices                     everything that is no bridge, and the verdict on it
  kvmhooks devices --free              only what could be given to a VM now
  kvmhooks devices 0000:65:00.0        one device
  kvmhooks devices 0000:65:00.0 --rom gpu.rom
                                       and whether that is an option ROM of it
"""

_RESETS: Final = {"function": "", "bus": "bus", "none": "no reset", "unknown": ""}
"""The words for each way to reset a device that the kernel's methods do not tell."""


def main(verb: str, argv: Sequence[str]) -> int:
    """Print the devices; 1 when one that was asked for is not there."""
    from kvmhooks.devices import list_devices
    from kvmhooks.devices.listing import to_json
    from kvmhooks.errors import HostError
    from kvmhooks.values import PciAddress

    arguments = parser_of(verb).parse_args(argv)
    asked = [PciAddress.parse(text) for text in arguments.address]
    judged = list_devices(arguments.root)
    absent = set(asked) - {judgement.device.address for judgement in judged}
    if absent:
        raise HostError(f"{min(absent)}: no such device on this host, or it is a bridge")
    images = _rom_of(
        arguments, [judgement for judgement in judged if judgement.device.address in asked]
    )
    shown = [
        judgement
        for judgement in judged
        if (not asked or judgement.device.address in asked)
        and (judgement.verdict == "free" or not arguments.free)
    ]
    if arguments.json:
        print(json.dumps(to_json(shown), indent=1))
    else:
        print("\n".join(_table(shown)) if shown else "no devices")
        for image in images:
            print(f"    {arguments.rom}: {image}")
    return 0


def _rom_of(arguments: argparse.Namespace, asked: Sequence[Judged]) -> tuple[Image, ...]:
    """Return the images in the file of ``--rom``; none without it.

    Raises ``HostError`` for what is no ROM of the one device that was asked for.
    """
    from kvmhooks.devices.rom import mismatch, read_rom
    from kvmhooks.errors import HostError, UsageError

    if arguments.rom is None:
        return ()
    if len(asked) != 1:
        raise UsageError("--rom: found it without one ADDRESS, expected the device that it is for")
    images = read_rom(arguments.rom)
    wrong = mismatch(images, asked[0].device.vendor, asked[0].device.device)
    if wrong:
        raise HostError(f"{arguments.rom}: {wrong}, which {asked[0].device.address} is")
    return images


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Return the command line of ``verb``."""
    parser = argparse.ArgumentParser(
        prog=f"kvmhooks {verb}",
        description="List what can be passed through to a VM, and what the host would lose.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("address", nargs="*", metavar="ADDRESS", help="only these")
    parser.add_argument("--free", action="store_true", help="only what nothing speaks against")
    parser.add_argument(
        "--rom", metavar="FILE", type=Path, help="check that it is a ROM of ADDRESS"
    )
    parser.add_argument("--root", metavar="DIR|FILE.tar", default="/", help="a captured host")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _table(judged: Sequence[Judged]) -> Iterator[str]:
    """Yield a line for each device, below it what speaks against it and what is to be known."""
    for judgement in judged:
        device = judgement.device
        ids = f"{(device.vendor or '?')[2:]}:{(device.device or '?')[2:]}"
        group = "no group" if device.iommu_group is None else f"group {device.iommu_group}"
        node = "" if device.node is None else f"node {device.node}"
        names = " ".join((*device.net, *device.block))
        reset = _RESETS[judgement.reset.kind] or ",".join(judgement.reset.methods)
        parts = (ids, device.driver or "no driver", group, node, reset, names)
        yield f"{device.address}  {judgement.verdict:<8}{'  '.join(filter(None, parts))}"
        for objection in judgement.objections:
            yield f"    refused: {objection}"
        if judgement.goes_with:
            yield f"    goes with {', '.join(map(str, judgement.goes_with))}"
        yield from (f"    note: {note}" for note in judgement.notes)
