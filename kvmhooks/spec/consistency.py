"""What no single value shows: keys that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterator

from kvmhooks.errors import Problem
from kvmhooks.spec.model import Net, VmSpec


def inconsistencies(spec: VmSpec) -> Iterator[Problem]:
    """Yield what is wrong with a spec whose every value is well-formed."""
    yield from _topology(spec)
    yield from _memory(spec)
    yield from _boot(spec)
    for index, net in enumerate(spec.net):
        yield from _net(net, f"net[{index}]")
    yield from _isolation(spec)


def _topology(spec: VmSpec) -> Iterator[Problem]:
    said = {
        level: count
        for level in ("sockets", "dies", "cores", "threads")
        if (count := getattr(spec.cpu, level)) is not None
    }
    product = math.prod(said.values())
    is_complete = {"sockets", "cores", "threads"} <= said.keys()
    if spec.cpu.vcpus % product or (is_complete and product != spec.cpu.vcpus):
        shape = " x ".join(f"{count} {level}" for level, count in said.items())
        times = "" if is_complete else "a multiple of "
        yield Problem("cpu.vcpus", str(spec.cpu.vcpus), f"{times}{product}: {shape}")


def _memory(spec: VmSpec) -> Iterator[Problem]:
    unit = spec.memory.hugepages or 1 << 20
    cells = spec.memory.cells or 1
    if spec.memory.size == 0 or spec.memory.size % (unit * cells):
        each = f" for each of {cells} cells" if cells > 1 else ""
        whole = "1MiB" if unit == 1 << 20 else str(spec.memory.hugepages)
        yield Problem(
            "memory.size", repr(str(spec.memory.size)), f"whole multiples of {whole}{each}"
        )


def _boot(spec: VmSpec) -> Iterator[Problem]:
    for key in ("initrd", "cmdline"):
        if spec.boot.kernel is None and getattr(spec.boot, key) is not None:
            yield Problem(f"boot.{key}", "no boot.kernel", "boot.kernel beside it")


def _net(net: Net, at: str) -> Iterator[Problem]:
    if net.type == "user" and net.device is not None:
        yield Problem(f"{at}.device", repr(net.device), 'nothing: type "user" has no device')
    if net.type != "user" and net.device is None:
        yield Problem(
            f"{at}.device", "nothing", f'the name of the {net.type}: type is "{net.type}"'
        )


def _isolation(spec: VmSpec) -> Iterator[Problem]:
    if spec.isolation.exclusive and spec.cpu.placement != "dedicated":
        yield Problem(
            "isolation.exclusive",
            f'true with cpu.placement = "{spec.cpu.placement}"',
            'cpu.placement = "dedicated": shared CPUs cannot be one VM\'s own',
        )
