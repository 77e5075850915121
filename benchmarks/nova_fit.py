"""Nova's own placement, run by the Python of Nova's environment: requests in, answers out.

One JSON object a line. Two times are told: of ``numa_fit_instance_to_host`` alone, and with the
host's topology made of its record before, as Nova's scheduler does for each request
(``HostState._update_from_compute_node`` in nova/scheduler/host_manager.py).
"""

from __future__ import annotations

import json
import logging
import signal
import statistics
import sys
import time
import warnings
from types import FrameType
from typing import Any, Final

warnings.simplefilter("ignore")
from nova import objects
from nova.virt import hardware

ROUNDS: Final = 5
"""The number of times that a request is put; the median of the times is told."""


class GaveUp(Exception):
    """The time for one request is over."""


def main() -> None:
    """Answer each line of standard input; the first argument is the limit in seconds."""
    logging.disable(logging.CRITICAL)
    objects.register_all()
    signal.signal(signal.SIGALRM, _give_up)
    limit = float(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), limit)), flush=True)


def answer(request: dict[str, Any], limit: float) -> dict[str, Any]:
    """Fit one request: its cells with their pins, or None, and the seconds it took."""
    topology = host_topology(request["nodes"])
    record = topology._to_json()  # noqa: SLF001 -- the text that Nova keeps of a host
    fits: list[float] = []
    reads: list[float] = []
    found = None
    while len(fits) < ROUNDS and sum(fits) < limit / 2:
        asked = instance_topology(request["cells"])
        started = time.process_time()
        host = objects.NUMATopology.obj_from_db_obj(record)
        read = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            found = hardware.numa_fit_instance_to_host(host, asked, {})
        except GaveUp:
            return {"gave_up": True, "fit": limit, "whole": limit, "cells": None}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        reads.append(read - started)
        fits.append(time.process_time() - read)
    cells = found and [{"node": cell.id, "pins": cell.cpu_pinning} for cell in found.cells]
    fit = statistics.median(fits)
    whole = fit + statistics.median(reads)
    return {"gave_up": False, "fit": fit, "whole": whole, "cells": cells or None}


def _give_up(_signal: int, _frame: FrameType | None) -> None:
    raise GaveUp


def host_topology(nodes: list[dict[str, Any]]) -> Any:
    """Return Nova's description of a host: each node with all its CPUs for dedicated instances."""
    return objects.NUMATopology(
        cells=[
            objects.NUMACell(
                id=number,
                cpuset=set(),
                pcpuset={cpu for siblings in node["siblings"] for cpu in siblings},
                siblings=[set(siblings) for siblings in node["siblings"]],
                pinned_cpus=set(node["pinned"]),
                memory=node["memory_mib"],
                cpu_usage=0,
                memory_usage=0,
                mempages=[],
                network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
                socket=0,
            )
            for number, node in enumerate(nodes)
        ]
    )


def instance_topology(cells: list[dict[str, Any]]) -> Any:
    """Return Nova's description of a VM: dedicated vCPUs, numbered through its cells."""
    made, first = [], 0
    for number, cell in enumerate(cells):
        made.append(
            objects.InstanceNUMACell(
                id=number,
                cpuset=set(),
                pcpuset=set(range(first, first + cell["vcpus"])),
                memory=cell["memory_mib"],
                pagesize=None,
                cpu_policy="dedicated",
                cpu_thread_policy=None,
            )
        )
        first += cell["vcpus"]
    return objects.InstanceNUMATopology(cells=made)


if __name__ == "__main__":
    main()
