"""The guest's CPU topology."""

from __future__ import annotations

import math

from kvmhooks.placement.model import Topology
from kvmhooks.spec.model import Cpu


def choose_threads(cpu: Cpu, host_threads: int) -> int:
    """The guest's threads in a core.

    What the spec says or leaves; else, for dedicated vCPUs, the host's own number if the vCPUs
    come out even, since guest siblings then are siblings; else 1, which promises nothing.
    """
    others = math.prod(count or 1 for count in (cpu.sockets, cpu.dies, cpu.cores))
    if cpu.threads is not None:
        return cpu.threads
    if cpu.sockets is not None and cpu.cores is not None:
        return cpu.vcpus // others
    if cpu.placement == "dedicated" and cpu.vcpus % (others * host_threads) == 0:
        return host_threads
    return 1


def choose_topology(cpu: Cpu, *, threads: int, cells: int) -> Topology:
    """Sockets, dies and cores for the vCPUs of ``cpu``.

    Without a word in the spec there is a socket for each of the ``cells``, as on most hardware,
    where that comes out even, and the rest are cores.
    """
    dies = cpu.dies or 1
    rest = cpu.vcpus // (threads * dies)
    if cpu.sockets is not None:
        sockets = cpu.sockets
    elif cpu.cores is not None:
        sockets = rest // cpu.cores
    else:
        sockets = cells if rest % cells == 0 else 1
    return Topology(sockets=sockets, dies=dies, cores=cpu.cores or rest // sockets, threads=threads)
