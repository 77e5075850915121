"""Asymmetric VMs side by side with OpenStack Nova's ``numa_fit_instance_to_host``.

1,000 random requests on hosts of 2, 8 and 16 nodes, each VM with guest cells of different sizes.
A brute force over everything finds the fits, under the rules that both keep: each cell on one node,
with a CPU for each vCPU and with its memory; for Nova each cell also has its node for itself. Then
the cells that permutations are worst at: 8 on 8 and 16 on 16 nodes, all different. Nova runs in an
environment of its own below ``build/``, made once. Times are of the CPU, the median of 5, and of
what both do: a node for each cell and a CPU for each vCPU. The rest of a plan is told apart.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from attrs import frozen

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kvmhooks.errors import PlanError
from kvmhooks.host import Host
from kvmhooks.inventory.usage import of_claim
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.placement import Effort, plan
from kvmhooks.placement.plan import place
from kvmhooks.placement.search.capacity import Capacity, measure
from kvmhooks.spec import VmSpec
from kvmhooks.spec.structure import structure
from kvmhooks.values import CpuSet
from tests.placement_proof.capacity import capacity_of
from tests.placement_proof.hosts import GIB, Core, NodeShape, Shape, host_of
from tests.placement_proof.validator import violations

NOVA: Final = "nova==34.0.0"
ENVIRONMENT: Final = ROOT / "build" / "nova-34.0.0"
REQUESTS: Final = 1000
NODES: Final = (2, 8, 16)
LIMIT_SECONDS: Final = 1.0
"""The time that Nova may take for one request before it is said to have given up."""
LIMIT_EVERY_NODE: Final = 60.0
ALL_NODES_MS: Final = 50.0
"""The time that ours may take where each of 8 or 16 nodes gets a cell."""
ROUNDS: Final = 5
HOUSEKEEPING: Final = CpuSet((0, 1))


T = TypeVar("T")


@frozen
class OnNode:
    """A node of a request's host: its cores as their CPUs, those taken, and its memory."""

    siblings: tuple[tuple[int, ...], ...]
    pinned: frozenset[int]
    memory_gib: int

    @property
    def free(self) -> frozenset[int]:
        """The CPUs that a VM may have."""
        return frozenset(cpu for core in self.siblings for cpu in core) - self.pinned


@frozen
class Request:
    """A host and a VM on it: its cells as (vCPUs, GiB)."""

    nodes: tuple[OnNode, ...]
    cells: tuple[tuple[int, int], ...]

    def fits(self, *, alone: bool) -> bool:
        """Return whether any way to deal the cells out to nodes holds them all; all ways are tried.

        ``alone`` gives each cell a node of its own.
        """
        cpus = [len(node.free) for node in self.nodes]
        gib = [node.memory_gib for node in self.nodes]

        def deal(left: list[tuple[int, int]]) -> bool:
            if not left:
                return True
            (vcpus, memory), *others = left
            for node in range(len(cpus)):
                if cpus[node] >= vcpus and gib[node] >= memory:
                    before = cpus[node], gib[node]
                    cpus[node] -= cpus[node] if alone else vcpus
                    gib[node] -= memory
                    found = deal(others)
                    cpus[node], gib[node] = before
                    if found:
                        return True
            return False

        return deal(sorted(self.cells, reverse=True))


def requests(seed: int = 6) -> Iterator[Request]:
    """Yield random requests that are about as large as what is free, some a little larger."""
    chance = random.Random(seed)  # noqa: S311 -- to repeat, not to hide
    for at in range(REQUESTS):
        nodes = tuple(_random_node(chance) for _ in range(NODES[at % len(NODES)]))
        most = {2: 2, 8: 5, 16: 4}[len(nodes)]
        chosen = chance.sample(nodes, chance.randint(2, most))
        yield Request(
            _numbered(nodes),
            tuple(
                (max(1, len(node.free) - chance.randint(-1, 3)), chance.choice((1, 4, 8)))
                for node in chosen
            ),
        )


def every_node(count: int) -> Request:
    """Return as many cells as nodes, each with its own number of vCPUs, which one order fits."""
    nodes = tuple(
        OnNode(tuple((2 * at, 2 * at + 1) for at in range(1 + number)), frozenset(), 8)
        for number in range(count)
    )
    cells = tuple((2 * (1 + number), 4) for number in reversed(range(count)))
    return Request(_numbered(nodes), cells)


def _random_node(chance: random.Random) -> OnNode:
    siblings = tuple((2 * at, 2 * at + 1) for at in range(chance.randint(1, 8)))
    cpus = [cpu for core in siblings for cpu in core]
    pinned = chance.sample(cpus, chance.randint(0, len(cpus) // 2))
    return OnNode(siblings, frozenset(pinned), chance.choice((4, 8, 16)))


def _numbered(nodes: Sequence[OnNode]) -> tuple[OnNode, ...]:
    """Return the nodes with their CPUs numbered through, from 2 on: 0 and 1 are the host's own."""
    made, first = [], 2
    for node in nodes:
        siblings = tuple(tuple(cpu + first for cpu in core) for core in node.siblings)
        made.append(
            OnNode(siblings, frozenset(cpu + first for cpu in node.pinned), node.memory_gib)
        )
        first += 2 * len(siblings)
    return tuple(made)


def nova_answers(asked: Sequence[Request], limit: float = LIMIT_SECONDS) -> list[dict[str, Any]]:
    """Return Nova's answer to each."""
    lines = [
        json.dumps(
            {
                "nodes": [
                    {
                        "siblings": node.siblings,
                        "pinned": sorted(node.pinned),
                        "memory_mib": node.memory_gib * 1024,
                    }
                    for node in request.nodes
                ],
                "cells": [
                    {"vcpus": vcpus, "memory_mib": gib * 1024} for vcpus, gib in request.cells
                ],
            }
        )
        for request in asked
    ]
    done = subprocess.run(
        [_nova_python(), ROOT / "benchmarks" / "nova_fit.py", str(limit)],
        input="\n".join(lines),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _nova_python() -> Path:
    """Return the Python of Nova's environment, which is made when it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    ready = ENVIRONMENT / "installed"
    if not ready.exists():
        print(f"installing {NOVA} into {ENVIRONMENT} (400 MB, some minutes)", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        quiet = ["--quiet", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", *quiet, NOVA], check=True)
        ready.touch()
    return python


def nova_verdict(request: Request, answer: dict[str, Any]) -> str:
    """Return the worth of Nova's answer."""
    if answer["gave_up"]:
        return "gave up"
    fits = request.fits(alone=True)
    if answer["cells"] is None:
        return "false refusal" if fits else "right refusal"
    used: set[int] = set()
    for cell, (vcpus, gib) in zip(answer["cells"], request.cells, strict=True):
        node = request.nodes[cell["node"]]
        pins = set((cell["pins"] or {}).values())
        if len(pins) != vcpus or pins & used or not pins <= node.free or gib > node.memory_gib:
            return "wrong pins" if fits else "wrong pins where nothing fits"
        used |= pins
    return "right placement"


@frozen
class Ours:
    """Our planner's answer, and the seconds it takes."""

    verdict: str
    plan: float
    """All of a plan, with its reasons, its score and the hardware of the VM."""
    whole: float
    """To look at the host, and to give each cell its node and each vCPU its CPU."""
    fit: float
    """The same on a host that was looked at; it keeps what was made for a request like it."""


def ours(request: Request) -> Ours:
    """Plan the request, and judge the plan by what the proof's validator says of it."""
    spec, host, claims = _spec(request), _host(request), _claims(request)

    def look() -> Capacity:
        return measure(host, [of_claim(claim) for claim in claims], HOUSEKEEPING)

    capacity = look()
    planning, decided = _timed(lambda: plan(spec, host, claims, housekeeping=HOUSEKEEPING))
    whole, found = _timed(lambda: place(spec, look(), effort=Effort()))
    fit, again = _timed(lambda: place(spec, capacity, effort=Effort()))
    pins = decided and {pin.vcpu: pin.cpus for pin in decided.vcpus}
    if not pins == (found and found.pins.vcpus) == (again and again.pins.vcpus):
        return Ours("wrong: two plans for one request", planning, whole, fit)
    if decided is None:
        verdict = "false refusal" if request.fits(alone=False) else "right refusal"
    else:
        wrong = violations(capacity_of(spec, host, claims, HOUSEKEEPING), decided)
        verdict = f"wrong: {wrong[0]}" if wrong else "right placement"
    return Ours(verdict, planning, whole, fit)


def _timed(planning: Callable[[], T]) -> tuple[float, T | None]:
    times: list[float] = []
    decided: T | None = None
    gc.collect()
    for _ in range(ROUNDS):
        started = time.process_time()
        try:
            decided = planning()
        except PlanError:
            decided = None
        times.append(time.process_time() - started)
    return statistics.median(times), decided


def _spec(request: Request) -> VmSpec:
    cells, first = [], 0
    for vcpus, gib in request.cells:
        cells.append({"vcpus": f"{first}-{first + vcpus - 1}", "size": f"{gib}GiB"})
        first += vcpus
    memory = {"size": f"{sum(gib for _, gib in request.cells)}GiB", "cell": cells}
    cpu = {"vcpus": first, "placement": "dedicated"}
    return structure({"name": "vm", "cpu": cpu, "memory": memory}, Path("/vms"))


def _host(request: Request) -> Host:
    """Return the same host for us: with one core more, the host's own, on the first node."""
    cores = [Core(0, 0, 0, tuple(HOUSEKEEPING))]
    for at, node in enumerate(request.nodes):
        cores += [Core(at, at, at, core) for core in node.siblings]
    count = len(request.nodes)
    return host_of(
        Shape(
            cores=tuple(cores),
            nodes=tuple(
                NodeShape(
                    memory_kib=node.memory_gib * GIB, free_kib=node.memory_gib * GIB, pages={}
                )
                for node in request.nodes
            ),
            node_ids=tuple(range(count)),
            distances=tuple(
                tuple(10 if row == other else 20 for other in range(count)) for row in range(count)
            ),
        )
    )


def _claims(request: Request) -> list[Claim]:
    taken = CpuSet(cpu for node in request.nodes for cpu in node.pinned)
    uuid = "00000000-0000-0000-0000-000000000001"
    return [Claim(driver="qemu", uuid=uuid, name="others", exclusive=taken)] if taken else []


def main() -> None:
    """Print the table; end with 1 where a plan is wrong, or an answer takes far too long."""
    asked = list(requests())
    theirs = nova_answers(asked)
    our = [ours(request) for request in asked]
    kept = _print_verdicts(
        Counter(
            nova_verdict(outcome, answer) for outcome, answer in zip(asked, theirs, strict=True)
        ),
        Counter(outcome.verdict for outcome in our),
    )
    is_slower = False
    for nodes in NODES:
        pairs = [
            (answer, outcome)
            for request, answer, outcome in zip(asked, theirs, our, strict=True)
            if len(request.nodes) == nodes
            and nova_verdict(request, answer) == outcome.verdict == "right placement"
        ]
        print(f"{nodes} nodes, {len(pairs)} requests that both solve (medians):")
        for name, part in (
            ("from the host's record", "whole"),
            ("on a host that stands ready", "fit"),
        ):
            novas = statistics.median(answer[part] for answer, _ in pairs) * 1000
            mine = statistics.median(getattr(outcome, part) for _, outcome in pairs) * 1000
            print(f"  {name:<28} {mine:6.2f} ms, Nova {novas:6.2f} ms: {mine / novas:.2f} x Nova")
            is_slower |= mine > novas
        all_of_it = statistics.median(outcome.plan for _, outcome in pairs) * 1000
        print(f"  {'with reasons and hardware':<28} {all_of_it:6.2f} ms, of which Nova has no part")
    for nodes in NODES[1:]:
        request = every_node(nodes)
        (answer,) = nova_answers([request], LIMIT_EVERY_NODE)
        outcome = ours(request)
        kept &= outcome.verdict == "right placement" and outcome.whole * 1000 < ALL_NODES_MS
        print(
            f"{nodes} of {nodes} nodes: ours {outcome.verdict}, {outcome.whole * 1000:.2f} ms; "
            f"Nova {nova_verdict(request, answer)}, {answer['whole'] * 1000:.0f} ms"
        )
    print(f"at most Nova's median: {'BROKEN' if is_slower else 'kept'}")
    print(
        "nothing refused that fits, no wrong pin, every node in less than "
        f"{ALL_NODES_MS:.0f} ms: {'kept' if kept else 'BROKEN'}"
    )
    if not kept:
        raise SystemExit(1)


def _print_verdicts(theirs: Counter[str], our: Counter[str]) -> bool:
    print(f"{'':<32} {'ours':>6} {'Nova':>6}   of {our.total()} requests")
    for verdict in sorted(theirs | our):
        print(f"{verdict:<32} {our[verdict]:>6} {theirs[verdict]:>6}")
    return set(our) <= {"right placement", "right refusal"}


if __name__ == "__main__":
    main()
