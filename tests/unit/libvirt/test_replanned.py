"""A running VM goes where the planner's score is better, as ``tune`` would have it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kvmhooks.cli.main import main
from kvmhooks.host import Host, read
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.system import System
from kvmhooks.libvirt.repin import RunningDomain
from kvmhooks.libvirt.tuning.replan import answer_for
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import plan
from kvmhooks.spec import parse_vm
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import write_host
from tests.unit.libvirt.test_tuned_place import EXCLUSIVE, OTHER, OWN, PARTS, card, domain

FIFO = "<vcpusched vcpus='0-1' scheduler='fifo' priority='1'/>"
WAYS = (
    "<cachetune vcpus='0-1'><cache id='{}' level='3' type='both' size='4' unit='MiB'/></cachetune>"
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two nodes of four cores with two threads, two cores to an L3; CPU 7 is isolated, and 15."""
    pci = (FakePci("0000:3b:00.0", node=0), FakePci("0000:af:00.0", node=1))
    root = write_host(
        tmp_path, packages=2, cores=4, threads=2, nodes=2, l3_cores=2, memory_mib=4096, pci=pci
    )
    return read(root, PARTS)


@pytest.mark.parametrize(
    ("pins", "more", "after", "gain"),
    [
        ("2;3", {}, "2;3", ""),
        ("7;6", {}, "7;6", ""),
        ("2;6", {}, "2;3", "1 node instead of 2"),
        ("1;2", {}, "2;3", "1 L3 cache instead of 2"),
        ("2;10", {}, "2;3", "whole cores"),
        ("2;3", {"devices": card("0xaf")}, "6;7", "network card's node"),
        ("6;7", {"devices": card("0xaf")}, "6;7", ""),
        ("1;2", {"cputune": WAYS.format(0)}, "1;2", ""),  # its ways do not go along
    ],
)
def test_the_score_decides(
    host: Host, pins: str, more: dict[str, Any], after: str, gain: str
) -> None:
    """Of places that are as good it keeps its own, and it is told what a better one has."""
    answer = answer_for(domain(pins, **more).encode(), Inventory(host=host))
    found = answer.found
    assert ";".join(str(found.pins[vcpu]) for vcpu in sorted(found.pins)) == after
    assert (answer.goes, found.moves) == (pins != after, pins != after)
    assert answer.reason.startswith("nothing would be better") != answer.goes
    assert any(gain in text for text in found.gains) if gain else found.gains == ()


def test_real_time_threads_go_to_isolated_cpus(host: Host) -> None:
    """Nodes, caches and cores are as many there; before, nothing would have been better."""
    assert host.kernel is not None
    isolating = evolve(host, kernel=evolve(host.kernel, isolated=CpuSet.parse("6-7,14-15")))
    answer = answer_for(domain("2;3", cputune=FIFO).encode(), Inventory(host=isolating))
    assert (answer.goes, answer.found.before) == (True, answer.found.after)
    assert answer.found.gains == ("CPUs that the kernel isolates",)


def test_what_does_not_go_along_keeps_it(host: Host) -> None:
    """Its memory, and its shares of caches: told with the remedy, unless it is better near both."""
    document = domain("2;3", devices=card("0xaf")).replace(
        "<os>", "<numatune><memory mode='strict' nodeset='0'/></numatune><os>"
    )
    answer = answer_for(document.encode(), Inventory(host=host), {0})
    assert (answer.goes, "its memory would stay on node 0" in answer.reason) == (False, True)
    nearer = answer_for(document.replace("'3'", "'1'").encode(), Inventory(host=host), {0})
    assert (nearer.goes, nearer.found.nodes) == (True, CpuSet({0}))
    other = Holding(name="other", uuid=OTHER, exclusive=CpuSet.parse("0-3,8-11"))
    taken = Inventory(host=host, holdings=(other,))
    caches = CpuSet(cache for cache in (host.cpu(2).l3,) if cache is not None)
    shared = answer_for(domain("2;3", cputune=WAYS.format(caches)).encode(), taken)
    assert not shared.goes
    assert f"its shares of L3 caches are of {caches}: stop it" in shared.reason
    assert answer_for(domain("2;3").encode(), taken).goes


def test_a_vm_that_kvmhooks_wrote_moves_when_asked(host: Host) -> None:
    """Others were on better CPUs when it started; these are free now."""
    spec = parse_vm(
        'name = "vm"\ncpu = { vcpus = 2, threads = 1, placement = "dedicated" }\n'
        'memory.size = "256MiB"\n[isolation]\nexclusive = true\n',
        folder=Path("/vms"),
    )
    other = Holding(name="other", uuid=OTHER, exclusive=CpuSet.parse("0,3,5-8,11,13-15"))
    crowded = domain_xml(plan(spec, Inventory(host=host, holdings=(other,)))).encode()
    answer = answer_for(crowded, Inventory(host=host))
    assert answer.goes
    moved = answer_for(answer.found.document, Inventory(host=host))
    assert (moved.goes, moved.found.changes) == (False, ())


class Runs:
    """A domain that runs, in the place of libvirt's."""

    def __init__(self, document: bytes) -> None:
        self.uuid = OWN
        self._document = document

    def document(self) -> bytes:
        """Return its XML as it runs."""
        return self._document

    nodes = staticmethod(RunningDomain.nodes)


def test_the_verb_tells_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both as JSON, with the gains, and as a sentence; a dry run changes nothing."""
    root = write_host(tmp_path, packages=2, cores=4, nodes=2, l3_cores=2, memory_mib=4096)
    document = domain("2;6", more=EXCLUSIVE, cputune="<emulatorpin cpuset='0'/>").encode()
    claim = read_claim(document)
    assert claim is not None
    Registry(System(str(root)), Store(str(root))).prepare(claim)
    monkeypatch.setattr(RunningDomain, "connected", lambda _uri, _name: nullcontext(Runs(document)))
    words = ["replan", "vm", "--root", str(root), "--dry-run"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["before"], told["after"], told["moved"]) == (
        {"nodes": 2, "l3": 2, "cores": 2},
        {"nodes": 1, "l3": 1, "cores": 2},
        False,
    )
    assert told["gains"] == ["1 node instead of 2", "1 L3 cache instead of 2"]
    assert {change["at"] for change in told["changes"]} == {
        "cputune/vcpupin[2]@cpuset",
        "cputune/emulatorpin@cpuset",  # two CPUs are kept for the host
    }
    assert main(words) == 0
    assert capsys.readouterr().out.endswith(
        "it would have 1 nodes, 1 L3 caches, 2 cores instead of 2 nodes, 2 L3 caches, 2 cores "
        "(1 node instead of 2, 1 L3 cache instead of 2)\n"
    )
