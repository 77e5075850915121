"""The survey: each source of an inventory, live or given, and what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kvmhooks.errors import HostError, IsolationError, KvmhooksError
from kvmhooks.host import Host, Kvm, read
from kvmhooks.inventory.hypervisor import NOT_TRIED, Hypervisor
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding, from_json, merged, second_identity_of
from kvmhooks.isolate.claims.administrator import limits
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.record.state import RUNNING, Held, State, boot_id
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.system.process_stat import Process, start_time
from kvmhooks.isolate.system.system import System
from kvmhooks.kvm.verdict import Verdict, remember
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.target import OLDEST, CpuAnswers
from kvmhooks.placement import claim, plan
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.run_dir import RunDir, private_directory
from kvmhooks.show.printed import printed
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.survey.records import launched, recorded
from kvmhooks.survey.sources import Sources
from kvmhooks.survey.survey import _recalled, ask_cpus, look_again, take, try_kvm
from kvmhooks.values import CpuSet, PciAddress
from tests.fakehost import write_host

CLAIMED = "11111111-1111-1111-1111-111111111111"
PENDING = "33333333-3333-3333-3333-333333333333"
DEAD = "44444444-4444-4444-4444-444444444444"
PINNED = "22222222-2222-2222-2222-222222222222"
PAGES = ((0, 2048, 8),)
MIB = 1024

# As qemuDomainObjPrivateXMLFormatVcpus (libvirt, src/qemu/qemu_domain.c) writes it.
STATUS = """\
<domstatus state='running' reason='booted' pid='400'>
  <vcpus>
    <vcpu id='0' pid='{first}'/>
    <vcpu id='1' pid='{second}'/>
    <vcpu id='2' pid='999'/>
  </vcpus>
  {domain}
</domstatus>
"""
DOMAIN = """\
<domain type='kvm' id='{id}'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  {more}
</domain>
"""
PINNED_MORE = """\
<memory unit='MiB'>100</memory>
<vcpu>3</vcpu>
<cputune>
  <vcpupin vcpu='0' cpuset='4'/>
  <vcpupin vcpu='1' cpuset='4-7'/>
  <cachetune vcpus='0'><cache id='0' level='3' type='both' size='2' unit='MiB'/></cachetune>
</cputune>
<devices>
  <hostdev mode='subsystem' type='pci' managed='yes'>
    <source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/></source>
  </hostdev>
  <hostdev mode='subsystem' type='mdev' model='vfio-pci'>
    <source><address uuid='C2177883-F1BB-47F0-914D-32A22E3A8804'/></source>
  </hostdev>
  <disk type='nvme' device='disk'>
    <source type='pci' managed='yes' namespace='1'>
      <address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/>
    </source>
  </disk>
</devices>
"""
PINNED_PCI = (PciAddress.parse("0000:3b:00.0"), PciAddress.parse("0000:41:00.0"))
VM = 'name = "vm"\ncpu.vcpus = 2\nmemory.size = "1GiB"\n'


def spec(text: str = VM) -> VmSpec:
    """A VM."""
    return parse_vm(text, folder=Path("/"))


def _claim(uuid: str, name: str, cpus: str) -> Claim:
    return Claim(
        driver="qemu",
        uuid=uuid,
        name=name,
        exclusive=CpuSet.parse(cpus),
        demands=[HugePageDemand(*pages) for pages in PAGES],
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host of two nodes with three claims, one of a VM that runs and one of a dead one, and two
    domains, of which one has a claim.
    """
    root = tmp_path / "root"
    write_host(root, cores=8, nodes=2)
    stat = root / "proc/1/stat"
    stat.parent.mkdir(parents=True, exist_ok=True)
    stat.write_text(f"1 (libvirtd) S {' '.join(['0'] * 18)} 1 0\n")
    assert start_time(System(str(root)), 1) == 1
    state = State(boot_id(System(str(root))))
    for uuid, cpus, how, start in (
        (CLAIMED, "1-2", RUNNING, 1),
        (PENDING, "3", "pending", 1),
        (DEAD, "5", RUNNING, 2),
    ):
        held = Held(_claim(uuid, f"vm{uuid[0]}", cpus), holder=Process(1, start), state=how)
        state.held[held.claim.key] = held
    store = Store(str(root))
    store.save(state.to_text())
    store.close()
    for thread, cpus in ((401, "1"), (402, "2"), (501, "4"), (502, "4-7")):
        status = root / f"proc/{thread}/status"
        status.parent.mkdir(parents=True)
        status.write_text(f"Name:\tCPU 0/KVM\nCpus_allowed_list:\t{cpus}\n")
    folder = root / "run/libvirt/qemu"
    folder.mkdir(parents=True)
    memory = (
        "<memory unit='MiB'>64</memory><numatune><memory mode='strict' nodeset='1'/></numatune>"
    )
    for name, uuid, first, more in (
        ("vm1", CLAIMED, 401, memory),
        ("pinned", PINNED, 501, PINNED_MORE),
    ):
        domain = DOMAIN.format(id=first // 100, name=name, uuid=uuid, more=more)
        text = STATUS.format(first=first, second=first + 1, domain=domain)
        (folder / f"{name}.xml").write_text(text)
    (folder / "pinned.pid").write_text("400\n")
    for group, masks in (("qemu-5-pinned-vcpus_0", "f0"), ("qemu-6-other-vcpus_0", "f")):
        schemata = root / f"sys/fs/resctrl/{group}/schemata"
        schemata.parent.mkdir(parents=True)
        schemata.write_text(f"    L3:0={masks};8={masks}\n    MB:0=70;8=100\n")
    return root


def sources(root: Path, **more: Any) -> Sources:
    """The sources of a host below a root."""
    return Sources(host=str(root), **more)


def test_a_claim_a_domain_and_both_are_a_vm_each(root: Path) -> None:
    """With all that either tells: CPUs, memory by node, cache ways, bandwidth, devices.

    Pages of a VM that runs are mapped; a thread that has ended, and the claim of a VM that is gone,
    are left out.
    """
    inventory = take(sources(root))
    assert (inventory.holdings, inventory.warnings) == (
        (
            Holding(
                name="vm1", uuid=CLAIMED, exclusive=CpuSet.parse("1-2"), memory=((1, 64 * MIB),)
            ),
            Holding(name="vm3", uuid=PENDING, exclusive=CpuSet([3]), hugepages=PAGES),
            Holding(
                name="pinned",
                uuid=PINNED,
                dedicated=CpuSet([4]),
                floating=((CpuSet.parse("4-7"), 1),),
                memory=((1, 100 * MIB),),
                ways=((0, 0xF0),),
                bandwidth=((0, 70),),
                pci=PINNED_PCI,
                mdevs=("c2177883-f1bb-47f0-914d-32a22e3a8804",),
            ),
        ),
        (),
    )


def test_a_host_where_nothing_runs_is_free(tmp_path: Path) -> None:
    """Without a record, and without libvirt."""
    inventory = take(sources(write_host(tmp_path)))
    assert (inventory.holdings, inventory.expected, inventory.housekeeping) == ((), (), None)


ODD = ["<domstatus", "<!DOCTYPE x [<!ENTITY a 'b'>]><domstatus/>", "<a>" * 200, ""]


@pytest.mark.parametrize("text", ODD, ids=range(4))
def test_what_is_no_status_is_told(root: Path, text: str) -> None:
    """It names the file; what the other VMs hold counts, and a plan is made.

    Bounded in depth, without entities, and never a traceback.
    """
    before = take(sources(root)).holdings
    (root / "run/libvirt/qemu/pinned.xml").write_text(text)
    inventory = take(sources(root))
    assert inventory.holdings == tuple(each for each in before if each.uuid != PINNED)
    (warning,) = inventory.warnings
    assert warning.startswith("/run/libvirt/qemu/pinned.xml: ")
    assert warning.endswith("; planned as if this domain did not run")


@pytest.mark.parametrize(
    "more",
    [
        PINNED_MORE.replace("'MiB'", "'furlong'", 1),
        PINNED_MORE.replace("bus='0x3b'", "bus='0x3bb'"),
        "<memory unit='MiB'>a lot</memory>",
    ],
    ids=range(3),
)
def test_a_domain_that_is_odd_has_its_cpus(root: Path, more: str) -> None:
    """No other VM gets the CPUs of one that runs, whatever else its record says."""
    domain = DOMAIN.format(id=5, name="pinned", uuid=PINNED, more=more)
    text = STATUS.format(first=501, second=502, domain=domain)
    (root / "run/libvirt/qemu/pinned.xml").write_text(text)
    inventory = take(sources(root))
    assert inventory.holdings[-1] == Holding(
        name="pinned",
        uuid=PINNED,
        dedicated=CpuSet([4]),
        floating=((CpuSet.parse("4-7"), 1),),
    )
    (warning,) = inventory.warnings
    assert warning.startswith("/run/libvirt/qemu/pinned.xml: ")
    assert warning.endswith("; planned as if this domain had its CPUs alone")


def test_domains_without_a_uuid_are_told_apart_by_their_names(root: Path) -> None:
    """Each has its CPUs."""
    for name, first in (("one", 401), ("two", 501)):
        domain = DOMAIN.format(id=7, name=name, uuid="", more="")
        text = STATUS.format(first=first, second=first, domain=domain)
        (root / f"run/libvirt/qemu/{name}.xml").write_text(text)
    held = {each.name: each.dedicated for each in take(sources(root)).holdings if not each.uuid}
    assert held == {"one": CpuSet([1]), "two": CpuSet([4])}


def test_given_holdings_stand_for_the_live_ones(root: Path) -> None:
    """With ``--claims`` nothing else is asked."""
    other = Holding(name="other", uuid=PENDING, exclusive=CpuSet([7]))
    assert take(sources(root, claims=(other,))).holdings == (other,)


def define(root: Path, name: str, uuid: str, more: str, *, starts: bool = False) -> None:
    """Define a domain."""
    folder = root / "etc/libvirt/qemu"
    (folder / "autostart").mkdir(parents=True, exist_ok=True)
    text = DOMAIN.format(id="-1", name=name, uuid=uuid, more=more)
    (folder / f"{name}.xml").write_text(text)
    if starts:
        (folder / f"autostart/{name}.xml").symlink_to(f"/etc/libvirt/qemu/{name}.xml")


def test_a_domain_that_is_only_defined_holds_nothing(tmp_path: Path) -> None:
    """But with ``--defined``: then what it would have, its huge pages too."""
    root = write_host(tmp_path, cores=8, nodes=2)
    pages = "<memory unit='MiB'>16</memory><memoryBacking><hugepages><page size='2048'/>"
    pages += "</hugepages></memoryBacking><vcpu cpuset='6-7'>2</vcpu>"
    define(root, "pinned", PINNED, PINNED_MORE)
    define(root, "paged", DEAD, pages)
    assert take(sources(root)).holdings == take(sources(root)).expected == ()
    inventory = take(sources(root, counts_defined=True))
    assert {each.name: each for each in inventory.holdings} == {
        "pinned": Holding(
            name="pinned",
            uuid=PINNED,
            dedicated=CpuSet([4]),
            floating=((CpuSet.parse("4-7"), 1),),
            memory=((1, 100 * MIB),),
            pci=PINNED_PCI,
            mdevs=("c2177883-f1bb-47f0-914d-32a22e3a8804",),
        ),
        "paged": Holding(
            name="paged",
            uuid=DEAD,
            floating=((CpuSet.parse("6-7"), 2),),
            hugepages=((-1, 2048, 8),),
        ),
    }


def test_a_definition_that_is_none_is_told(tmp_path: Path) -> None:
    """With its file; the others count."""
    root = write_host(tmp_path, cores=8)
    define(root, "broken", PINNED, "<vcpu>2")
    define(root, "odd", PINNED, "<memory unit='furlong'>1</memory>")
    define(root, "good", DEAD, "<vcpu cpuset='3'>1</vcpu>")
    inventory = take(sources(root, counts_defined=True))
    assert [each.name for each in inventory.holdings] == ["good"]
    places = [warning.partition(": ")[0] for warning in inventory.warnings]
    assert places == [f"/etc/libvirt/qemu/{name}.xml" for name in ("broken", "odd")]


DEDICATED = f'{VM}cpu.placement = "dedicated"\n'


def test_of_equal_places_one_is_taken_that_leaves_an_autostarted_domain_its_own(
    tmp_path: Path,
) -> None:
    """It is named; where no other place is as good it has no say, and the plan warns."""
    root = write_host(tmp_path, packages=2, cores=4, nodes=2)
    alone = plan(spec(DEDICATED), take(sources(root), spec(DEDICATED)))
    first, second = sorted(alone.dedicated_cpus)
    more = f"<vcpu>1</vcpu><cputune><vcpupin vcpu='0' cpuset='{first}'/></cputune>"
    define(root, "early", PINNED, more, starts=True)
    inventory = take(sources(root), spec(DEDICATED))
    assert [each.name for each in inventory.expected] == ["early"]
    apart = plan(spec(DEDICATED), inventory)
    assert first not in apart.dedicated_cpus
    assert apart.score == alone.score
    assert "early, which will start with the host" in apart.why[0]
    whole = plan(spec(DEDICATED.replace("= 2", "= 6")), inventory)
    assert first in whole.dedicated_cpus
    assert any("early will start with the host" in warning for warning in whole.warnings)
    assert second in whole.dedicated_cpus


def housekeeping(root: Path, cpus: str) -> None:
    """Have the administrator keep CPUs for the host."""
    folder = root / "etc/kvmhooks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kvmhooks.toml").write_text(f'[host]\nhousekeeping = "{cpus}"\n')


def test_the_administrators_housekeeping_is_the_plans(tmp_path: Path) -> None:
    """No vCPU is put there, and it is what the plan keeps for the host; offline CPUs are none."""
    root = write_host(tmp_path, cores=8)
    housekeeping(root, "5-7,99")
    inventory = take(sources(root), spec(DEDICATED))
    decided = plan(spec(DEDICATED.replace("= 2", "= 5")), inventory)
    assert inventory.housekeeping == decided.housekeeping == CpuSet.parse("5-7")
    assert decided.dedicated_cpus == CpuSet.parse("0-4")


def test_the_administrators_settings_are_the_plans(tmp_path: Path) -> None:
    """Those of every VM, and those of the VM that is asked about."""
    root = write_host(tmp_path, cores=8)
    folder = root / "etc/kvmhooks"
    (folder / "vm.d").mkdir(parents=True)
    (folder / "kvmhooks.toml").write_text("[memory]\nksm = 0\n")
    (folder / "vm.d/vm.toml").write_text("[kernel]\nhalt_poll = 9\n")
    (folder / "vm.d/other.toml").write_text("[kernel]\nhalt_poll = 8\n")
    inventory = take(sources(root), spec(DEDICATED))
    assert inventory.settings_for("vm") == (
        ("/etc/kvmhooks/kvmhooks.toml", {"memory.ksm": "0"}),
        ("/etc/kvmhooks/vm.d/vm.toml", {"kernel.halt_poll": "9"}),
    )
    decided = plan(spec(DEDICATED), inventory)
    assert dict(claim(decided).settings) == {"memory.ksm": "0", "kernel.halt_poll": "9"}
    assert take(sources(root)).settings_for("vm") == ()  # a domain may be none of ours


def test_a_mistake_in_the_administrators_file_is_one_error(tmp_path: Path) -> None:
    """It is that of a start, with its place."""
    root = write_host(tmp_path, cores=8)
    housekeeping(root, "none of them")
    with pytest.raises(IsolationError, match=r"^/etc/kvmhooks/kvmhooks\.toml: host\.housekeeping"):
        take(sources(root))


FILE = "/etc/kvmhooks/kvmhooks.toml"
OWN_FILE = "/etc/kvmhooks/vm.d/vm.toml"


def test_a_mistake_in_the_file_of_a_vm_is_one_of_its_plan(tmp_path: Path) -> None:
    """It is one of its start, whoever starts it; other VMs have nothing to do with it."""
    root = write_host(tmp_path, cores=8)
    (root / "etc/kvmhooks/vm.d").mkdir(parents=True)
    (root / OWN_FILE[1:]).write_text("[isolation]\nnosuch = 'yes'")
    for has_libvirt in (True, False):
        with pytest.raises(IsolationError, match=rf"^{OWN_FILE}: isolation\.nosuch: "):
            take(sources(root, has_libvirt=has_libvirt), spec())
    take(sources(root), spec(VM.replace('"vm"', '"other"')))


NO_EFFECT = {
    "5-7": [],
    "": [],
    "99": [
        f"{FILE}: host.housekeeping: found 99, expected CPUs of this host, 0-7: 99 keep nothing"
    ],
    "5-7,99": [
        f"{FILE}: host.housekeeping: found 5-7,99, expected CPUs of this host, 0-7: 99 keep nothing"
    ],
    "3": [
        f"{FILE}: host.housekeeping: found 3, expected some that are online: these keep nothing now"
    ],
}


@pytest.mark.parametrize("cpus", NO_EFFECT)
def test_housekeeping_that_keeps_nothing_is_told(tmp_path: Path, cpus: str) -> None:
    """CPUs that this host has not, and such that are all offline; the others count."""
    root = write_host(tmp_path, cores=8, offline="3")
    if cpus:
        housekeeping(root, cpus)
    inventory = take(sources(root), spec(DEDICATED))
    assert [told for told in inventory.warnings if FILE in told] == NO_EFFECT[cpus]


MISTAKES = {
    "[nosuch]\na = 1": "nosuch.a",
    'housekeeping = "1"': "housekeeping: found '1', expected a table",
    "[isolation]\nexclusive = 'perhaps'": "isolation.exclusive",
    "[isolation]\nnosuch = 'yes'": "isolation.nosuch",
    "[power]\ngovernor = 1.5": "power.governor",
    "[host]\nnosuch = 1": "host.nosuch",
    "[host]\nbudget = 0": "host.budget",
    "[host": "",
}


def start(xml: str, system: System) -> None:
    """Read the file as the hook does: for the VM's settings, then for the limits."""
    read_claim(xml, system=system)
    limits(system)


@pytest.mark.parametrize("text", MISTAKES)
def test_the_administrators_file_has_one_reader(tmp_path: Path, text: str) -> None:
    """A mistake anywhere in it is an error of a plan as it is one of a start, in the same words."""
    root = write_host(tmp_path, cores=8)
    (root / "etc/kvmhooks").mkdir(parents=True)
    (root / "etc/kvmhooks/kvmhooks.toml").write_text(text)
    with pytest.raises(IsolationError) as planned:
        take(sources(root))
    xml = domain_xml(plan(spec(DEDICATED), read(root)))
    with pytest.raises(IsolationError) as started:
        start(xml, System(str(root)))
    assert str(planned.value) == str(started.value)
    assert str(planned.value).startswith(f"{FILE}: {MISTAKES[text]}")


RECORD = {
    "name": "db1", "source": "/etc/db1.toml", "state": "running", "why": "", "since": 5.0,
    "supervisor": os.getpid(), "supervisor_start": start_time(System(), os.getpid()), "qemu": 77,
    "cpus": "4-7", "exclusive": "4-5", "dedicated": "4-6", "uuid": PINNED, "twin": False,
}  # fmt: skip
"""A record of a92f6b5."""


def record(base: Path, **more: object) -> Path:
    """Write a record, and return its path."""
    (base / "db1").mkdir(parents=True, exist_ok=True)
    path = base / "db1/status.json"
    path.write_text(json.dumps(RECORD | more))
    return path


def test_a_launched_vm_holds_what_its_record_says(tmp_path: Path) -> None:
    """Its huge pages are promised until it runs; one that came here holds it as the second."""
    holding = Holding(
        name="db1",
        uuid=PINNED,
        exclusive=CpuSet.parse("4-5"),
        memory=((0, 5),),
        hugepages=PAGES,
        ways=((0, 3),),
    )
    told = holding.to_json()
    for more, expected in (
        ({"state": "running"}, evolve(holding, hugepages=())),
        ({"state": "claimed", "qemu": 0}, holding),
        ({"twin": True}, evolve(holding, uuid=second_identity_of(PINNED), hugepages=())),
    ):
        record(tmp_path, **more, holding=told)
        assert recorded(tmp_path, System()) == ([expected], [])
    record(tmp_path, supervisor_start=1, holding=told)
    assert recorded(tmp_path, System()) == ([], [])


def test_vms_below_the_users_own_directory_count_below_any(tmp_path: Path) -> None:
    """Once each; a VM of the same name that runs there is another one than that which starts.

    It holds its CPUs against it: both would have the same UUID, and so be one VM.
    """
    users, other = tmp_path / "users", tmp_path / "other"
    holding = Holding(name="db1", uuid=PINNED, dedicated=CpuSet.parse("4-6"))
    record(users, holding=holding.to_json())
    for run_dir in (None, users):
        assert launched(run_dir, users, System(), {PINNED}) == ([holding], [])
    assert launched(other, users, System(), set()) == ([holding], [])
    assert launched(other, None, System(), set()) == ([], [])
    ((stranger,), told) = launched(other, users, System(), {PINNED})
    assert (evolve(stranger, uuid=PINNED), told) == (holding, [])
    assert Inventory(host=Host(), holdings=(stranger,)).others_of(PINNED) == [stranger]
    record(other, holding=evolve(holding, dedicated=CpuSet([2])).to_json())
    below = launched(other, users, System(), {PINNED})[0]
    assert [each.dedicated for each in below] == [CpuSet([2]), CpuSet.parse("4-6")]
    assert below[0].uuid == PINNED != below[1].uuid


ALONE = f"{DEDICATED}isolation.exclusive = false\n"


@pytest.mark.parametrize("text", [VM, ALONE], ids=range(2))
def test_a_vm_that_others_do_not_know_is_told_of(tmp_path: Path, text: str) -> None:
    """One with CPUs of its own, below a directory that only it looks at; in the user's own not."""
    named = f"--run-dir: of kvm-launch's VMs those below {tmp_path}"
    told = take(Sources(run_dir=tmp_path, has_libvirt=False), spec(text)).warnings
    assert any(each.startswith(named) and "not know vm:" in each for each in told) is (
        text == ALONE
    )
    told = take(Sources(has_libvirt=False), spec(text)).warnings
    assert not any(each.startswith("--run-dir") for each in told)


def test_a_record_of_an_older_supervisor_holds_its_cpus(tmp_path: Path) -> None:
    """Also one that has no UUID: it is another VM than any that has."""
    record(tmp_path)
    own = Holding(
        name="db1", uuid=PINNED, exclusive=CpuSet.parse("4-5"), dedicated=CpuSet.parse("6")
    )
    assert recorded(tmp_path, System()) == ([own], [])
    record(tmp_path, uuid="")
    ((unnamed,), told) = recorded(tmp_path, System())
    assert (evolve(unnamed, uuid=PINNED), told) == (own, [])


@pytest.mark.parametrize(
    "more",
    [
        {"uuid": "no uuid"}, {"uuid": PINNED.replace("2", "F")}, {"dedicated": "x"},
        {"holding": {"format": 9}}, {"holding": [1]}, {"dedicated": [7]}, {"uuid": 5, "name": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_told(tmp_path: Path, more: dict[str, object]) -> None:
    """With its file, and never a traceback."""
    with RunDir(tmp_path, "db1"):
        path = record(tmp_path, **more)
        held, told = recorded(tmp_path, System())
    if more == {"uuid": 5, "name": 3}:
        assert "found no record that can be read" in told[0]
    assert (held, len(told), told[0].startswith(f"{path}: ")) == ([], 1, True)


def test_what_is_no_directory_of_records_is_told(tmp_path: Path) -> None:
    """A directory that is not there holds no VM."""
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match=r"expected a directory of this user's own"):
        recorded(tmp_path / "file", System())
    assert recorded(tmp_path / "none", System()) == ([], [])


def test_live_vms_of_kvm_launch_count_without_a_claim(tmp_path: Path) -> None:
    """The memory of two of 12 GiB on two nodes of 8: the second is refused."""
    root = write_host(tmp_path / "root", packages=2, cores=8, nodes=2, memory_mib=8192)
    big = 'cpu.vcpus = 2\nmemory.size = "12GiB"\nmemory.mode = "strict"\nmemory.cells = 2\n'
    first = spec(f'name = "db1"\nuuid = "{PINNED}"\n{big}')
    inventory = take(sources(root), first)
    record(tmp_path / "run", holding=of_plan(plan(first, inventory)).to_json())
    held, _ = recorded(tmp_path / "run", System())
    plan(first, inventory.beside(held))  # its own are no other's
    with pytest.raises(KvmhooksError, match="memory"):
        plan(spec(f'name = "second"\n{big}'), inventory.beside(held))


def test_a_printed_claim_says_what_other_plans_must_know(tmp_path: Path) -> None:
    """Given back by ``--claims`` it holds the memory as the VM does that runs."""
    root = write_host(tmp_path / "root", packages=2, cores=8, nodes=2, memory_mib=8192)
    decided = plan(spec(DEDICATED), take(sources(root), spec(DEDICATED)))
    read_back = from_json(json.loads(printed(decided, "claim")))
    assert read_back.memory == of_plan(decided).memory != ()
    assert from_json(claim(decided).to_json()).memory == ()


WRONG: dict[str, Any] = {
    "memory": [{"node": 0, "kib": -5}],
    "hugepages": [{"node": -2, "size_kib": 2048, "count": 1}],
    "floating": [{"cpus": "0", "vcpus": -1}],
    "ways": [{"cache": 0, "mask": "-f"}],
    "bandwidth": [{"cache": 0, "percent": 1.5}],
    "uuid": "A" * 36,
    "pci": [5],
    "exclusive": None,
    "key": "sgx",
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_numbers_of_a_holding_are_one_error(key: str) -> None:
    """Negative, broken or of another type: the place, and no traceback."""
    document = Holding(name="a", uuid=PINNED).to_json()
    assert from_json(document) == Holding(name="a", uuid=PINNED)
    with pytest.raises(KvmhooksError, match=r"^claims"):
        from_json(document | {key: WRONG[key]})


def test_a_vm_that_two_places_know_is_one() -> None:
    """The first has the say on CPUs of its own; what it does not know is added."""
    of_its_claim = Holding(name="a", uuid=PINNED, exclusive=CpuSet([1]), hugepages=())
    of_its_record = Holding(
        name="a", uuid=PINNED, exclusive=CpuSet([1, 2]), memory=((0, 5),), hugepages=PAGES
    )
    (both,) = merged([of_its_claim, of_its_record])
    expected = evolve(of_its_claim, dedicated=CpuSet([2]), memory=((0, 5),))
    assert both == expected


@pytest.mark.parametrize(
    ("security", "key"),
    [
        ("<launchSecurity type='sev'><policy>0x3</policy></launchSecurity>", "sev"),
        ("<launchSecurity type='sev'><policy>0x7</policy></launchSecurity>", "sev_es"),
        ("<launchSecurity type='sev'><policy>no</policy></launchSecurity>", "sev"),
        ("<launchSecurity type='sev-snp'><policy>0x30000</policy></launchSecurity>", "sev_es"),
        ("<launchSecurity type='tdx'/>", "tdx"),
        ("<launchSecurity type='s390-pv'/>", ""),
        ("", ""),
    ],
)
def test_an_encrypted_domain_holds_a_key(security: str, key: str, tmp_path: Path) -> None:
    """One that runs has it, one that is only defined would be promised it."""
    root = write_host(tmp_path, cores=8)
    define(root, "secret", PINNED, f"<vcpu>1</vcpu>{security}")
    (defined,) = take(sources(root, counts_defined=True)).holdings
    assert (defined.key, defined.has_key) == (key, False)
    folder = root / "run/libvirt/qemu"
    folder.mkdir(parents=True)
    domain = DOMAIN.format(id=5, name="secret", uuid=PINNED, more=f"<vcpu>1</vcpu>{security}")
    (folder / "secret.xml").write_text(STATUS.format(first=501, second=502, domain=domain))
    (runs,) = take(sources(root)).holdings
    assert (runs.key, runs.has_key) == (key, bool(key))


def test_a_launched_vm_has_its_key_once_it_runs(tmp_path: Path) -> None:
    """Before that it is promised one."""
    told = Holding(name="db1", uuid=PINNED, key="tdx").to_json()
    for more, has_key in (({"state": "running"}, True), ({"state": "claimed", "qemu": 0}, False)):
        record(tmp_path, **more, holding=told)
        ((held,), _) = recorded(tmp_path, System())
        assert (held.key, held.has_key) == ("tdx", has_key)


WITH_KVM = Host(kvm=Kvm(available=True))
ABSENT = "TCG, QEMU's own emulation: this host has no working /dev/kvm"


@pytest.mark.parametrize(
    ("known", "host", "expected"),
    [
        (Hypervisor(), Host(), ("tcg", ABSENT)),
        (Hypervisor(kvm="works", reason="r"), WITH_KVM, ("kvm", "KVM was tried here and works: r")),
        (
            Hypervisor(kvm="fails", reason="r"),
            WITH_KVM,
            ("tcg", "TCG, QEMU's own emulation: KVM was tried here and does not work: r"),
        ),
        (Hypervisor(kvm="not tried"), WITH_KVM, ("kvm", f"{NOT_TRIED}: /dev/kvm is there")),
        (Hypervisor(kvm="assumed"), Host(), ("kvm", "KVM is assumed to work")),
    ],
)
def test_the_verdict_has_the_same_words_everywhere(
    known: Hypervisor, host: Host, expected: tuple[str, str]
) -> None:
    """They are the plan's reason; what the VM asks for stands without any."""
    assert known.accelerator("auto", host) == expected
    assert known.accelerator("tcg", host) == ("tcg", "")


@pytest.fixture
def emulator(tmp_path: Path) -> Path:
    """A QEMU that ends at once."""
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\necho first >&2\necho no such machine >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def live(emulator: Path) -> tuple[VmSpec, Inventory]:
    """A VM on that QEMU, and an inventory of a host with KVM that nobody has tried."""
    vm = spec(f'{VM}machine.emulator = "{emulator}"\n')
    known = Hypervisor(kvm="not tried", target=OLDEST)
    return vm, Inventory(host=WITH_KVM, hypervisors={"vm": known}, warnings=("another",))


def test_a_trial_is_made_once(tmp_path: Path, emulator: Path) -> None:
    """A verdict that is there is taken; one that could not be had is tried again."""
    vm, inventory = live(emulator)
    here = Sources(run_dir=tmp_path / "run")
    tried = try_kvm(inventory, here, vm).hypervisor_of("vm")
    reason = "QEMU could not start a probe guest: no such machine"
    assert tried == Hypervisor(kvm="fails", reason=reason, target=OLDEST)
    assert list((tmp_path / "run").iterdir()) == []
    directory = private_directory(tmp_path / "run")
    remember(Verdict(is_usable=True, evidence="it ran"), emulator, directory)
    os.close(directory)
    recalled = try_kvm(inventory, here, vm).hypervisor_of("vm")
    assert recalled == Hypervisor(kvm="works", reason="it ran", target=OLDEST)


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
def test_what_a_vm_asks_for_is_not_tried(tmp_path: Path, emulator: Path, accel: str) -> None:
    """Nor is anything where the host has no KVM."""
    vm, inventory = live(emulator)
    asked = evolve(vm, machine=evolve(vm.machine, accel=accel))  # type: ignore[arg-type]
    here = Sources(run_dir=tmp_path / "run")
    assert try_kvm(inventory, here, asked) is inventory
    without = evolve(inventory, host=Host())
    assert try_kvm(without, here, vm) is without
    assert not (tmp_path / "run").exists()


def test_a_captured_host_has_no_verdict(root: Path) -> None:
    """But the word of whoever captured it."""
    known = take(sources(root), spec()).hypervisor_of("vm")
    assumed = take(sources(root, assumes_kvm=True), spec()).hypervisor_of("vm")
    assert (known.kvm, assumed.kvm) == ("not tried", "assumed")


def test_a_start_looks_again(root: Path) -> None:
    """A VM that has come since is there, and the host is not read anew."""
    inventory = take(sources(root), spec())
    (root / "run/libvirt/qemu/pinned.xml").unlink()
    again = look_again(inventory, sources(root), spec())
    assert [each.name for each in again.holdings] == ["vm1", "vm3"]
    assert again.host is inventory.host


WAYS = {
    "sys/fs/resctrl/schemata": "    L3:0=fff",
    "sys/fs/resctrl/info/L3/cbm_mask": "fff",
    "sys/fs/resctrl/info/L3/min_cbm_bits": "1",
    "sys/fs/resctrl/info/L3/num_closids": "16",
    "sys/fs/resctrl/info/L3/shareable_bits": "0",
}


def test_two_vms_never_have_the_same_ways(tmp_path: Path) -> None:
    """The second, beside the record of the first, gets others, or is refused."""
    root = write_host(tmp_path / "root", cores=8, files=WAYS)
    first = spec(f'{DEDICATED}uuid = "{PINNED}"\nisolation.cache_ways = 5\n'.replace("vm", "db1"))
    decided = plan(first, take(sources(root), first))
    record(tmp_path / "run", holding=of_plan(decided).to_json())
    held, _ = recorded(tmp_path / "run", System())
    second = spec(f"{DEDICATED}isolation.cache_ways = 5\n")
    beside = plan(second, take(sources(root), second).beside(held))
    ((mine,), (others,)) = (beside.caches, decided.caches)
    assert (mine.mask.bit_count(), mine.mask & others.mask) == (5, 0)
    large = spec(f"{DEDICATED}isolation.cache_ways = 8\n")
    inventory = take(sources(root), large).beside(held)
    with pytest.raises(KvmhooksError, match=r"cpu\.vcpus"):
        plan(large, inventory)


def test_bandwidth_that_others_have_is_not_given_twice(tmp_path: Path) -> None:
    """libvirt gives no more than all of it."""
    root = write_host(tmp_path, cores=8)
    other = Holding(name="other", uuid=DEAD, bandwidth=((0, 70),))
    for percent, is_refused in ((30, False), (40, True)):
        vm = spec(f"{DEDICATED}isolation.memory_bandwidth = {percent}\n")
        inventory = take(sources(root, claims=(other,)), vm)
        if is_refused:
            with pytest.raises(KvmhooksError, match="beside what other VMs have, expected 30 %"):
                plan(vm, inventory)
        else:
            assert plan(vm, inventory).bandwidth == ((0, 30),)


def test_a_mediated_device_of_another_vm_is_refused(tmp_path: Path) -> None:
    """By its UUID, whichever place tells of it."""
    root = write_host(tmp_path, cores=8)
    device = "c2177883-f1bb-47f0-914d-32a22e3a8804"
    other = Holding(name="other", uuid=DEAD, mdevs=(device,))
    vm = spec(f'{VM}[[mdev]]\nuuid = "{device}"\n')
    inventory = take(sources(root, claims=(other,)), vm)
    with pytest.raises(KvmhooksError, match=f"{device}, which other has, expected a mediated"):
        plan(vm, inventory)


ON_EPYC = f'{VM}machine.accel = "kvm"\ncpu.model = "EPYC"\ncpu.features = ["+avx2"]\n'
NOT_ASKED = f"vm: cpu.model, cpu.features: {NOT_TRIED} on this boot: planned as if it works"


def asking(folder: Path, body: str) -> tuple[VmSpec, Inventory, Sources]:
    """A VM that asks for a CPU model, on a QEMU that does this, which nobody has asked yet."""
    program = folder / "qemu"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    vm = spec(f'{ON_EPYC}machine.emulator = "{program}"\n')
    inventory = Inventory(
        host=WITH_KVM, hypervisors={"vm": Hypervisor()}, warnings=("another", NOT_ASKED)
    )
    return vm, inventory, Sources(run_dir=folder / "run")


def test_a_start_asks_qemu_under_kvm_once_a_boot(tmp_path: Path) -> None:
    """Others take what it has left: no verb that only reads starts QEMU for it."""
    runs = tmp_path / "runs"
    results: list[Any] = [[{"name": "EPYC", "unavailable-features": ["sha-ni"]}], {}, {}]
    lines = [json.dumps({"return": each, "id": at}) for at, each in enumerate([*results, {}, {}])]
    answers = "\n".join(lines)
    vm, inventory, here = asking(tmp_path, f"echo run >> {runs}\ncat <<'END'\n{answers}\nEND")
    asked = ask_cpus(inventory, here, vm)
    expected = CpuAnswers(lacking={"EPYC": ("sha-ni",)})
    assert asked.hypervisor_of("vm").target.answers == {"kvm": expected}
    assert asked.warnings == ("another",)
    assert ask_cpus(asked, here, vm) is asked
    assert ask_cpus(inventory, here, vm) == asked
    assert runs.read_text() == "run\n"
    assert _recalled(here, vm, WITH_KVM, OLDEST).answers == {"kvm": expected}
    assert _recalled(here, spec(), WITH_KVM, OLDEST) is OLDEST
    assert runs.read_text() == "run\n"


def test_a_qemu_that_cannot_be_asked_is_told_of(tmp_path: Path) -> None:
    """The VM is planned as if all worked: whether it starts, its start will tell."""
    vm, inventory, here = asking(tmp_path, "echo 'no KVM' >&2; exit 1")
    asked = ask_cpus(inventory, here, vm)
    told = "vm: cpu.model, cpu.features: KVM could not be asked: "
    assert asked.warnings == ("another", f"{told}{tmp_path}/qemu: no KVM: planned as if it works")
    assert asked.hypervisor_of("vm").target.answers == {}


@pytest.mark.parametrize("text", [VM, f"{ON_EPYC.replace('kvm', 'tcg')}"], ids=["host", "tcg"])
def test_what_does_not_depend_on_kvm_is_not_asked(tmp_path: Path, text: str) -> None:
    """A VM with the host's CPU as it is, or that is emulated."""
    _, inventory, here = asking(tmp_path, "exit 1")
    assert ask_cpus(inventory, here, spec(text)) is inventory


def test_a_start_counts_the_keys_again(tmp_path: Path) -> None:
    """Somebody else may have taken one since: only of a VM that needs one is that looked at."""
    files = {
        "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
        "sys/fs/cgroup/misc.capacity": "sev_es 2",
        "sys/fs/cgroup/misc.current": "sev_es 1",
    }
    root = write_host(tmp_path, cores=8, kvm="amd", files=files)
    vm = spec(f'{VM}security.type = "sev-es"\n')
    inventory = take(sources(root, assumes_kvm=True), vm)
    (root / "sys/fs/cgroup/misc.current").write_text("sev_es 2\n")
    again = look_again(inventory, sources(root, assumes_kvm=True), vm)
    for known, used in ((inventory, 1), (again, 2)):
        assert known.host.cgroup is not None
        assert known.host.cgroup.misc_used == {"sev_es": used}
    assert look_again(inventory, sources(root), spec()).host is inventory.host
