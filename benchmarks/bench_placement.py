"""Planning on large hosts: 64 to 1,024 CPUs (up to 16 nodes and 64 L3s), 0 to 200 VMs placed.

The promise: the largest case in less than 100 ms, and a growth of at most n log n in CPUs.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement import claim, plan
from kvmhooks.spec import VmSpec
from kvmhooks.spec.structure import structure
from tests.fakehost import FakeHost

SIZES: Final = (64, 128, 256, 512, 1024)
PLACED: Final = (0, 50, 200)
ROUNDS: Final = 5
LARGEST_MS: Final = 100.0


def main() -> None:
    """Print a table, the growth for each number of VMs, and whether the promise is kept."""
    hosts = {size: large_host(size) for size in SIZES}
    print(f"{'CPUs':>6} {'VMs':>5} {'median':>11} {'slowest shape':>14}")
    kept = True
    for placed in PLACED:
        times = {}
        for size, host in hosts.items():
            claims = placed_vms(host, placed)
            took = [median_time(spec, host, claims) for spec in shapes(size)]
            times[size] = statistics.median(took)
            middle, most = times[size] * 1000, max(took) * 1000
            print(f"{size:>6} {len(claims):>5} {middle:>8.2f} ms {most:>11.2f} ms")
            kept &= max(took) * 1000 < LARGEST_MS
        exponent = growth(times)
        relative = growth({size: took / math.log(size) for size, took in times.items()})
        print(f"growth with {placed} VMs: n^{exponent:.2f}, over n log n: n^{relative - 1:+.2f}")
        kept &= relative <= 1
    print(f"under {LARGEST_MS:.0f} ms and at most n log n: {'kept' if kept else 'BROKEN'}")
    if not kept:
        raise SystemExit(1)


def large_host(cpus: int) -> Host:
    """Return a host of so many CPUs, 64 in a node, 16 in an L3."""
    nodes = cpus // 64
    with tempfile.TemporaryDirectory(prefix="kvmhooks-bench-") as name:
        FakeHost(
            packages=max(1, nodes // 4),
            cores=cpus // 2 // max(1, nodes // 4),
            threads=2,
            l3_cores=8,
            nodes=nodes,
            memory_mib=524_288,
            hugepages={2048: (131_072, 131_072), 1 << 20: (64, 64)},
        ).write(Path(name))
        return read(name)


def shapes(cpus: int) -> list[VmSpec]:
    """Return the VMs whose placement is timed, from small to more than a node."""
    described: list[dict[str, Any]] = [
        {"cpu": {"vcpus": 2}, "memory": {"size": "2GiB"}},
        {"cpu": {"vcpus": 4, "placement": "dedicated"}, "memory": {"size": "4GiB"}},
        {
            "cpu": {"vcpus": 16, "placement": "dedicated"},
            "memory": {"size": "16GiB", "hugepages": "2MiB"},
            "isolation": {"exclusive": True},
        },
        {"cpu": {"vcpus": cpus // 8, "placement": "dedicated"}, "memory": {"size": "32GiB"}},
    ]
    return [vm(f"timed{at}", shape) for at, shape in enumerate(described)]


def placed_vms(host: Host, count: int) -> list[Claim]:
    """Return the claims of VMs that are there: each fourth has two CPUs, half are left."""
    claims: list[Claim] = []
    alone = 0
    for at in range(count):
        is_alone = at % 4 == 0 and alone + 2 <= len(host.online) // 4
        described: dict[str, Any] = {"cpu": {"vcpus": 2}, "memory": {"size": "1GiB"}}
        if is_alone:
            described["cpu"]["placement"] = "dedicated"
            described["isolation"] = {"exclusive": True}
            alone += 2
        try:
            claims.append(claim(plan(vm(f"vm{at}", described), host, claims)))
        except PlanError:
            break
    return claims


def vm(name: str, described: dict[str, Any]) -> VmSpec:
    """Return a VM of this name."""
    return structure({"name": name, **described}, Path("/vms"))


def median_time(spec: VmSpec, host: Host, claims: Sequence[Claim]) -> float:
    """Return the median CPU time of a placement, without other work's garbage."""
    times = []
    for _ in range(ROUNDS):
        gc.collect()
        started = time.process_time()
        plan(spec, host, claims)
        times.append(time.process_time() - started)
    return statistics.median(times)


def growth(times: dict[int, float]) -> float:
    """Return the exponent of the power law nearest to the times (least squares on logarithms)."""
    return statistics.linear_regression(
        [math.log(size) for size in times], [math.log(took) for took in times.values()]
    ).slope


if __name__ == "__main__":
    main()
