"""The guest's CPU topology, after where its vCPUs are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from kvmhooks.errors import PlanError
from kvmhooks.spec.model import Cpu, VmSpec
from kvmhooks.values import CpuSet

MOST_VCPUS: Final = (((9, 0), 4096), ((8, 1), 1024), ((0, 0), 288))
"""(since which machine type, how many vCPUs q35 has at most): ``max_cpus`` in hw/i386/pc_q35.c."""

MOST_CELLS: Final = 128
"""``MAX_NODES`` of QEMU (include/system/numa.h)."""


@frozen(kw_only=True)
class Topology:
    """The guest's CPU topology; the product of all is the number of vCPUs.

    vCPU numbers run through threads first, then cores, and so on (QEMU's ``-smp``).
    """

    sockets: int = 1
    dies: int = 1
    clusters: int = 1
    cores: int = 1
    threads: int = 1


def check_limits(spec: VmSpec) -> None:
    """See that the machine type has as many vCPUs and cells. Raises ``PlanError``."""
    machine, vcpus = spec.machine, spec.cpu.vcpus
    version = re.fullmatch(r"pc-q35-(\d+)[.](\d+)", machine.type)
    if version is not None:
        number = (int(version[1]), int(version[2]))
        most = next(count for since, count in MOST_VCPUS if number >= since)
    else:
        most = MOST_VCPUS[0][1]
    if vcpus > most:
        raise PlanError("cpu.vcpus", str(vcpus), f"at most {most}, which {machine.type} has")
    cells = {"cell": len(spec.memory.cell), "cells": spec.memory.cells or 0}
    for key, count in cells.items():
        if count > MOST_CELLS:
            found = f"{count} cells"
            raise PlanError(f"memory.{key}", found, f"at most {MOST_CELLS}, which QEMU has")


def choose_topology(
    cpu: Cpu, *, threads: int, cells: Sequence[CpuSet], l3_cores: Sequence[int] = ()
) -> Topology:
    """Return sockets, dies and cores for the vCPUs of ``cpu``.

    Without a word in the spec there is a socket for each of the ``cells`` that have vCPUs, as on
    most hardware, where they are alike and follow each other; and in a socket a die for each L3
    cache that its vCPUs are on (``l3_cores``: how many guest cores each has, in the order of the
    vCPUs), where that comes out even: a guest of QEMU has an L3 for each die (target/i386/cpu.c).
    """
    guest_cores = cpu.vcpus // threads
    sockets, dies = cpu.sockets, cpu.dies
    if sockets is None and cpu.cores is not None:
        sockets = guest_cores // (cpu.cores * (dies or 1))
    if sockets is None:
        sockets = _sockets(cpu, threads=threads, dies=dies or 1, cells=cells)
    per_socket = guest_cores // sockets
    if dies is None:
        dies = 1
        each = l3_cores[0] if l3_cores else per_socket
        is_even = cpu.cores is None and sum(l3_cores) == guest_cores
        if is_even and set(l3_cores) == {each} and per_socket % each == 0:
            dies = per_socket // each
    return Topology(
        sockets=sockets, dies=dies, cores=cpu.cores or per_socket // dies, threads=threads
    )


def _sockets(cpu: Cpu, *, threads: int, dies: int, cells: Sequence[CpuSet]) -> int:
    with_vcpus = [cell for cell in cells if cell]
    count = len(with_vcpus)
    share = cpu.vcpus // count
    follow = all(
        cell == CpuSet(range(at * share, (at + 1) * share)) for at, cell in enumerate(with_vcpus)
    )
    return count if follow and share % (threads * dies) == 0 else 1
