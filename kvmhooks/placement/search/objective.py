"""The definition of an allowed placement, and of the better of two, in words and numbers.

**Words.** *CPU*: a thread of the host; only those that are online count. *Core*: a CPU with its
online siblings. *L3*: the CPUs of one node that share an L3 cache; those of which none is known are
one L3. *Node*: a NUMA node; a host without nodes is one node without a number.
*Guest core*: ``t`` vCPUs that follow each other, the first a multiple of ``t``, where ``t`` is the
guest's threads in a core.

- *Kind* of a core: *performance*, *efficiency*, *low-power*. It is an efficiency core if one of its
  CPUs is, and a low-power one if besides its CPUs have no L3 where others of the host have. On a
  host without kinds all are performance cores.
- *Isolated*: what the kernel does not balance (``isolcpus``) or keeps its tick from
  (``nohz_full``). An isolated core has such a CPU; a *wholly* isolated one has no other.
- Cores *share an L2* that have one and are below one L3.
- ``held``: all that holdings of other VMs have in ``exclusive``, ``dedicated`` and ``idle``, and
  of one that ``keeps_siblings`` the cores of the first two.
- ``kept``: the housekeeping that is given (by the caller, the administrator, or systemd, which
  keeps its services there); else the CPUs of QEMU's other threads of other VMs (``helpers`` of
  their holdings) that nobody holds, and the reserves of this placement.
- ``free`` = online - held - kept. A core is *whole* when all its CPUs are free.
- A *reserve* is what can become the host's on a node: all CPUs of a core that are neither held nor
  kept nor isolated, two at least; or the one such CPU of each of two cores of one kind below one
  L3.
- ``eligible`` = those of free that are of ``cpu.kind`` (all, where the host has no kinds) and, with
  ``isolation.cache_ways``, whose L3 has that many free ways in a row.
- ``pool`` = online - isolated - held, and on a node that has others without low-power cores.

**A placement** gives each guest cell a node, each dedicated vCPU a CPU, and, where no housekeeping
is given and there are dedicated vCPUs, the host a reserve on none, some or all nodes. It is allowed
when:

1.  Each dedicated vCPU has another CPU; it is eligible, and on the node of its cell.
2.  The vCPUs of one guest core are on one core. ``t`` is ``cpu.threads``; else what ``sockets`` and
    ``cores`` leave; else any number up to the threads of the host's largest core such that ``t`` x
    ``sockets`` x ``dies`` x ``cores`` (those given) divides the vCPUs, and no guest core is in two
    given cells or partly dedicated. With ``placement = "shared"`` and no word of it, 1. Two guest
    cores are on one core only where the person said ``t``: a guest would take siblings for cores.
3.  ``smt = "require"``: a guest core is alone on a whole core and uses every CPU of it.
    ``smt = "isolate"``: a guest core is alone on a whole core, what it leaves of it is ``idle``,
    and ``t`` is 1 without a word of it. ``smt = "share"``: neither.
4.  The cells. With ``memory.cell``, those. With ``memory.cells = N``, N that are alike (``N``
    divides the guest cores; vCPUs in order). With neither, 1 to as many as there are nodes, each on
    a node of its own; every cell has at least one guest core, the cells are in order of their size,
    the largest first (equal ones on any of their nodes); the memory is divided as the vCPUs are: in
    units (huge pages, else MiB) each cell has ``floor(units * vcpus / all vcpus)``, and what is
    left goes one each to the first cells; none is left without. A node needs room for the share
    *rounded up*. A mixed VM without a word of cells has one. One to which memory is added (DIMMs,
    virtio-mem) has, without a word of cells, cells that are alike: at least those that its added
    memory names, at most one for each node if those are fewer.
5.  A cell is on a node of ``memory.nodes``, if given, and on its own ``node``, if given; one with
    vCPUs is on a node that has CPUs. A node with memory only (CXL) takes cells without vCPUs, if
    ``memory.nodes`` or a cell's ``node`` names it: no guest gets slow memory that nobody asked for.
6.  The cells of a node together find room there, and what is added to them finds it among ordinary
    pages, grown wholly. Ordinary pages: the node's MemTotal - its huge
    page pools - ordinary memory that holdings have there, in whole units; a node whose memory is
    not known has room for all. Huge pages: its free ones - those that holdings were promised and
    have not mapped (of no node in particular: taken from the lowest nodes first); with
    ``memory.allocate`` besides those that fit in its MemFree less 5 % of its MemTotal.
7.  Shared vCPUs float over the pool of their cell's node, less the dedicated and idle CPUs of the
    VM itself. With ``v`` > 0 shared vCPUs there, ``p`` = CPUs of the pool - ``c`` x the dedicated
    guest cores there (``c`` = ``t`` with ``smt = "share"``, else the threads of the host's largest
    core) must be 1 or more; with ``cpu.ratio``, ``v`` + the node's load <= ratio x p. The
    load of a node is the sum, over what floats, of its vCPUs x its online CPUs there / all its
    online CPUs: a fraction, which does not depend on what is held.
8.  A device of ``locality = "required"``: some cell is on its node. Where its node is not known, no
    placement is allowed on a host of several nodes, and every one on a host of one or of none.
9.  There is a CPU for the host and QEMU's other threads: ``kept`` is not empty (the pool, for a
    shared VM). Where it is without reserves, on a host of four CPUs or fewer, there may be one
    reserve of a single CPU instead, which is neither held nor isolated.

**The score** of a placement is the tuple of the numbers in ``ORDER``; the least tuple is the best.
All are whole numbers; every one that does not apply is 0.
"""

from __future__ import annotations

from typing import Final

ORDER: Final[dict[str, str]] = {
    "narrow": "1 for dedicated vCPUs beside a host that keeps a single CPU",
    "beside_host": "1 if a dedicated vCPU is on a core of which a CPU is kept",
    "crowding": (
        "shared vCPUs: the greatest v / p, rounded up, of any node (p as in 7, v of this VM only)"
    ),
    "cohabiting": "guest cells less nodes used: cells that share a node with another",
    "nodes": "nodes used",
    "distance": (
        "the sum of the distances from each used node to each other one; where not known, 12 "
        "between nodes that share an L3, 16 between those of one package, 20 between others"
    ),
    "remote_devices": (
        "devices of locality preferred whose node is known and has no cell of the VM"
    ),
    "small_pages": 'hugepages = "auto": 0 for 1 GiB pages, 1 for 2 MiB, 2 for ordinary ones',
    "unevenness": (
        "cells that the planner made, of a VM that is not mixed: the sum of the squares of their "
        "vCPUs"
    ),
    "allocated": (
        "huge pages to be allocated: the sum over nodes of the pages needed beyond the free ones"
    ),
    "unisolated": (
        "a real-time VM on a host with isolated CPUs: the sum over its dedicated vCPUs, 0 on a "
        "wholly isolated core, 1 on an isolated CPU of another, else 2"
    ),
    "on_isolated": (
        "another VM: the sum over the nodes with dedicated vCPUs, 1 if all are on isolated cores, "
        "2 if only some are"
    ),
    "low_power": "dedicated vCPUs on low-power cores",
    "kinds": "the sum over the nodes with dedicated vCPUs of the kinds of their cores, less one",
    "slow": "dedicated vCPUs on efficiency cores, when no kind is asked for",
    "company": (
        "dedicated guest cores that have a core not to themselves: another guest core is on it, or "
        "a CPU of it is not free"
    ),
    "shared_l2": (
        "dedicated guest cores whose core shares an L2 with another core of which a CPU is kept or "
        "held"
    ),
    "far_helpers": "nodes with dedicated vCPUs on which no CPU is kept",
    "l3": "L3s with a dedicated vCPU",
    "shared_l3": "those of them of which a CPU is kept",
    "cores": "cores with a dedicated vCPU",
    "helpers": (
        "the sum, over the nodes with dedicated vCPUs on which k > 0 CPUs are kept, of o / (3 k), "
        "rounded up, less 1: o VMs, this one too, have QEMU's other threads there"
    ),
    "fast_reserves": (
        "CPUs of reserves on a host with kinds: 2 for one of a performance core, 1 for one of an "
        "efficiency core, 0 for one of a low-power core"
    ),
    "load": (
        "the sum, over the nodes with shared vCPUs of this VM, of (v + load) x 1000 / p, each "
        "rounded up once, at the end"
    ),
    "node_blocks": (
        "of a VM with dedicated vCPUs, less than 0: minus the sum, over all nodes, of the square "
        "of the whole cores that stay free"
    ),
    "l3_blocks": "the same over all L3s",
}
"""The numbers of the score, the most important first. The less, the better."""

WEIGHED: Final = tuple(ORDER)[tuple(ORDER).index("unevenness") :]
"""Those that are sums over nodes of what each cell costs there; the others are the whole VM's."""
