"""One host, one VM, one answer: all verbs and paths of kvm-launch plan on the same inventory.

Hosts have claims, libvirt's running domains and an administrator's limits in their trees; whoever
plans there gives the same plan, and one that the hook's admission takes.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmhooks
from kvm_launch.commands import main as launcher
from kvmhooks.cli.main import main as verbs
from kvmhooks.isolate.claims.administrator import limits
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.record.state import RUNNING, Held, State, boot_id
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.admission import check, check_housekeeping
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.placement import to_json
from kvmhooks.values import CpuSet, union
from tests.fakehost import write_host

CLAIMED = "11111111-1111-1111-1111-111111111111"
RUNS = "22222222-2222-2222-2222-222222222222"
STATUS = """\
<domstatus state='running' pid='400'>
  <vcpus><vcpu id='0' pid='401'/></vcpus>
  <domain type='kvm' id='1'>
    <name>runs</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory>
    <cputune><cachetune vcpus='0'><cache id='0' level='3' type='both' size='1'/></cachetune>
    </cputune>
  </domain>
</domstatus>
"""
RESCTRL = {
    "sys/fs/resctrl/schemata": "    MB:0=100;8=100\n    L3:0=fff;8=fff",
    "sys/fs/resctrl/info/L3/cbm_mask": "fff",
    "sys/fs/resctrl/info/L3/min_cbm_bits": "1",
    "sys/fs/resctrl/info/L3/num_closids": "16",
    "sys/fs/resctrl/info/L3/shareable_bits": "0",
    "sys/fs/resctrl/qemu-1-runs-vcpus_0/schemata": "    MB:0=100;8=100\n    L3:0=f;8=fff",
}


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """A host of 8 or 16 CPUs, what others hold of it, what is kept of it, and a VM."""
    nodes = draw(st.sampled_from([1, 2]))
    cpus = 8 * nodes
    some = st.sets(st.integers(0, cpus - 1), max_size=4)
    return {
        "nodes": nodes,
        "claimed": CpuSet(draw(some)),
        "pinned": CpuSet([draw(st.integers(0, cpus - 1))]),
        "kept": CpuSet(draw(some)),
        "memory": draw(st.sampled_from([64, 700])),
        "vcpus": draw(st.integers(1, 5)),
        "placement": draw(st.sampled_from(["dedicated", "shared"])),
        "exclusive": draw(st.booleans()),
        "ways": draw(st.sampled_from([None, 2, 9])),
        "accel": draw(st.sampled_from(["auto", "tcg"])),
    }


@contextmanager
def host_of(situation: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """The tree of a host, and the file of the VM beside it."""
    with TemporaryDirectory() as folder:
        root, file = Path(folder, "host"), Path(folder, "vm.toml")
        nodes = situation["nodes"]
        write_host(root, packages=nodes, cores=8, nodes=nodes, memory_mib=1024, files=RESCTRL)
        plant(root, situation)
        own = situation["exclusive"] and situation["placement"] == "dedicated"
        ways = situation["ways"] if situation["placement"] == "dedicated" else None
        file.write_text(
            f'name = "vm"\nmachine.accel = "{situation["accel"]}"\nmemory.size = "512MiB"\n'
            f'cpu.vcpus = {situation["vcpus"]}\ncpu.placement = "{situation["placement"]}"\n'
            f"isolation.exclusive = {str(own).lower()}\n"
            + (f"isolation.cache_ways = {ways}\n" if ways else "")
        )
        yield root, file


def plant(root: Path, situation: dict[str, Any]) -> None:
    """Have VMs run on a host, and the administrator keep some of it."""
    for pid, name in ((1, "libvirtd"), (401, "CPU 0/KVM")):
        process = root / f"proc/{pid}"
        process.mkdir(parents=True, exist_ok=True)
        (process / "stat").write_text(f"{pid} ({name}) S {' '.join(['0'] * 18)} 1 0\n")
        (process / "status").write_text(f"Name:\t{name}\nCpus_allowed_list:\t{situation['pinned']}")
    if situation["claimed"]:
        claim = Claim(driver="qemu", uuid=CLAIMED, name="held", exclusive=situation["claimed"])
        state = State(boot_id(System(str(root))))
        state.held[claim.key] = Held(claim, holder=Process(1, 1), state=RUNNING)
        store = Store(str(root))
        store.save(state.to_text())
        store.close()
    domains = root / "run/libvirt/qemu"
    domains.mkdir(parents=True)
    (domains / "runs.xml").write_text(STATUS.format(uuid=RUNS, memory=situation["memory"]))
    if situation["kept"]:
        (root / "etc/kvmhooks").mkdir(parents=True)
        (root / "etc/kvmhooks/kvmhooks.toml").write_text(
            f'[host]\nhousekeeping = "{situation["kept"]}"\n'
        )


def run(main: Any, *words: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run a command in this process: its exit code, and what it printed on both streams."""
    streams = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, (sys.stdout, sys.stderr) = io.TextIOWrapper(io.BytesIO(stdin)), streams
    try:
        code = main(words)
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    return code, out, err


def verb(root: Path, file: Path, name: str, *more: str) -> tuple[int, str, str]:
    """A verb of kvmhooks there."""
    return run(lambda words: verbs(list(words)), name, str(file), "--host", str(root), *more)


def launch(root: Path, file: Path, *words: str) -> tuple[int, str, str]:
    """A path of kvm-launch there."""
    return run(lambda all_: launcher.main(list(all_)), str(file), "--host", str(root), *words)


@pytest.mark.usefixtures("_signals")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(situation=situations())
def test_every_verb_and_path_gives_one_answer(situation: dict[str, Any]) -> None:
    """The same plan, claim, arguments and XML, or the same refusal, by whichever is asked."""
    with host_of(situation) as (root, file):
        answers = [
            verb(root, file, "plan", "--json", "--libvirt", "0"),
            launch(root, file, "--print", "plan", "--json"),
            launch(root, file, "--dry-run", "--json"),
        ]
        spec = kvmhooks.load_vm(file)
        inventory = kvmhooks.take_inventory(
            kvmhooks.Sources(host=str(root), has_libvirt=False), spec
        )
        decided, refusal = None, ""
        try:
            decided = kvmhooks.plan(spec, inventory)
        except kvmhooks.PlanError as error:
            refusal = str(error)
        if decided is None:
            assert {code for code, _, _ in answers} == {1}
            assert all(refusal in err for _, _, err in answers)
            return
        assert [code for code, _, _ in answers] == [0, 0, 0], answers
        expected = json.loads(json.dumps(to_json(decided)))
        assert [json.loads(out[out.index("{") :]) for _, out, _ in answers] == [expected] * 3
        _, out, _ = verb(root, file, "plan", "--json")
        for_libvirt = json.loads(out)
        for_libvirt["hardware"]["target"]["libvirt"] = None
        assert for_libvirt == expected
        for what in ("claim", "argv", "xml"):
            assert verb(root, file, what)[:2] == launch(root, file, "--print", what)[:2]
        look(situation, root, inventory, decided)
        _, xml, _ = verb(root, file, "xml")
        moved = kvmhooks.tune(xml.encode(), inventory, only=["cpu"])
        assert others_cpus(situation).isdisjoint(pins_of(moved.document, decided))
        code, answer, _ = run(
            lambda words: verbs(list(words)), "replan", "-", "--root", str(root), stdin=xml.encode()
        )
        assert (code, answer) == (0, "")  # what was planned there is of use there


def pins_of(document: bytes, decided: kvmhooks.Plan) -> CpuSet:
    """The CPUs of the vCPUs that have one each in a domain's XML."""
    if not decided.dedicated:
        return CpuSet()
    from kvmhooks.libvirt.edit.text import parse
    from kvmhooks.libvirt.importing.cpu import vcpu_pins

    return union(vcpu_pins(parse(document).root).values())


def others_cpus(situation: dict[str, Any]) -> CpuSet:
    """The CPUs that a vCPU of its own may have none of."""
    return CpuSet(situation["claimed"] | situation["pinned"] | situation["kept"])


def look(
    situation: dict[str, Any], root: Path, inventory: kvmhooks.Inventory, decided: kvmhooks.Plan
) -> None:
    """See that nothing has two owners, by the hook's own admission."""
    assert decided.dedicated_cpus.isdisjoint(others_cpus(situation))
    system = System(str(root))
    wanted = kvmhooks.claim(decided, driver="qemu")
    check_housekeeping(wanted, limits(system))
    held = [
        Held(
            Claim(driver="qemu", uuid=CLAIMED, name="held", exclusive=situation["claimed"]),
            holder=Process(1, 1),
            state=RUNNING,
        )
    ]
    check(wanted, held if situation["claimed"] else [], [], system)
    (runs,) = (each for each in inventory.holdings if each.uuid == RUNS)
    for share in decided.caches:
        assert not share.mask & dict(runs.ways).get(share.cache, 0)
    for cell in decided.cells:
        assert cell.memory_kib <= 1024 * 1024 - (
            situation["memory"] * 1024 if cell.node == node_of(inventory) else 0
        )


def node_of(inventory: kvmhooks.Inventory) -> int | None:
    """The node on which the running domain has its memory."""
    (runs,) = (each for each in inventory.holdings if each.uuid == RUNS)
    ((node, _),) = runs.memory
    return node


@pytest.fixture
def _signals() -> Iterator[None]:
    """Leave the signals as they were, which kvm-launch sets for itself."""
    import signal

    from kvmhooks.signals import SIGNALS

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
