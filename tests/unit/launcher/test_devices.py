"""kvm-launch binds the devices of its VMs, through the same claims as libvirt's hook."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvm_launch.host.claimed_plan import plan_and_claim
from kvm_launch.host.lease import Lease, check_bound
from kvm_launch.prepare.checks import check
from kvm_launch.tell.outcome import Ended, Isolated, Outcome
from kvm_launch.tell.show import outcome_lines
from kvmhooks.errors import IsolationError, PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.placement import claim, plan
from kvmhooks.spec import VmSpec, parse_vm
from kvmhooks.values import CpuSet
from tests.fakedevices import FakePci
from tests.fakehost import write_host
from tests.isolate_model.kernel import Record
from tests.isolate_model.launched import LaunchedVm, LaunchKernel, looking
from tests.isolate_model.pci import Function
from tests.isolate_model.world import World, effective_state

NIC, DISK, SPARE = "0000:05:00.0", "0000:06:00.0", "0000:07:00.0"
GIVEN = f"""
    [[pci]]
    net = "enp5s0"
    allow = ["bridge"]
    [[nvme]]
    address = "{DISK}"
"""
OWNED = 'cpu.placement = "dedicated"\nisolation.exclusive = true\n'


@cache
def host() -> Host:
    """A host with a network card and two disks' controllers."""
    pci = (
        FakePci(NIC, driver="e1000e", iommu_group=5, net=("enp5s0",)),
        FakePci(DISK, class_="0x010802", driver="nvme", iommu_group=6, block=("nvme1n1",)),
        FakePci(SPARE, class_="0x010802", driver="nvme", iommu_group=7),
    )
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), cores=16, numbering="adjacent", pci=pci))


def spec(devices: str = GIVEN, *, head: str = "", name: str = "guest") -> VmSpec:
    """A VM with devices."""
    text = f'name = "{name}"\nmachine.accel = "tcg"\nmemory.size = "1GiB"\ncpu.vcpus = 2\n'
    return parse_vm(text + head + devices, folder=Path("/"))


@pytest.fixture
def kernel() -> LaunchKernel:
    """The same host as a model."""
    kernel = LaunchKernel("systemd", 16, 4)
    kernel.pci.plug(NIC, Function(5, "e1000e", ("e1000e",)))
    kernel.pci.plug(DISK, Function(6, "nvme", ("nvme",)))
    kernel.pci.plug(SPARE, Function(7, "nvme", ("nvme",)))
    return kernel


@pytest.mark.parametrize("head", ["", OWNED], ids=["shared CPUs", "own CPUs"])
def test_a_launched_vm_has_its_devices_while_it_lives(kernel: LaunchKernel, head: str) -> None:
    """It has them with and without CPUs of its own; one that a plan named otherwise is bound as
    well.
    """
    world = World(kernel)
    before = effective_state(kernel)
    vm = LaunchedVm("guest")
    lease = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
    if head:
        lease = vm.run(world, spec(head=head), host())
    else:
        plan_and_claim(lease, spec(), looking(kernel, host()))
        vm.pid = kernel.spawn("child", parent=kernel.supervisor, group="system.slice/cron.service")
        lease.adopt(vm.pid)
        lease.isolate(vm.pid, {})
        world.vms["guest"] = vm  # type: ignore[assignment]
    bound = {at: kernel.pci.functions[at].driver for at in (NIC, DISK, SPARE)}
    assert bound == {NIC: "vfio-pci", DISK: "vfio-pci", SPARE: "nvme"}
    held = lease.isolated
    assert held is not None
    own = CpuSet.parse("2-3") if head else CpuSet()
    assert (held.exclusive, held.devices) == (own, (NIC, DISK))
    vm.stop(world, lease)
    assert lease.left == ()
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_launched_vm_that_is_killed_leaves_its_devices_to_the_next(kernel: LaunchKernel) -> None:
    """kvm-launch and its QEMU are gone; `reconcile` gives back."""
    world = World(kernel)
    before = effective_state(kernel)
    lease = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
    plan_and_claim(lease, spec(), looking(kernel, host()))
    kernel.end(kernel.supervisor)
    before.pop(f"task/{kernel.supervisor}")
    world.reconcile()
    assert effective_state(kernel) == before
    assert kernel.record is None


def test_a_signal_that_comes_while_devices_go_back_is_noted(
    kernel: LaunchKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All go back, and whoever would start the VM again knows that it was asked to stop."""
    before = effective_state(kernel)
    write = kernel.write_within

    def interrupted(seconds: float, path: str, text: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write(seconds, path, text)

    with Lease(Registry(kernel, Record(kernel)), kernel.supervisor) as lease:
        plan_and_claim(lease, spec(), looking(kernel, host()))
        assert not lease.was_asked
        monkeypatch.setattr(kernel, "write_within", interrupted)
    assert (lease.was_asked, lease.left) == (True, ())
    assert effective_state(kernel) == before


def test_a_device_that_another_vm_has_is_planned_around(kernel: LaunchKernel) -> None:
    """By its claim; named by its address it is refused."""
    first = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
    plan_and_claim(
        first, spec(f'[[pci]]\naddress = "{DISK}"', name="first"), looking(kernel, host())
    )
    claims = Registry(kernel, Record(kernel)).claims()
    free = plan(spec('[[pci]]\nid = "8086:1572"\n' * 2), host(), claims)
    assert [str(place.address) for place in free.pci] == [NIC, SPARE]
    with pytest.raises(PlanError, match=f"{DISK}, which first has, expected a device that is free"):
        plan(spec(f'[[pci]]\naddress = "{DISK}"'), host(), claims)


def test_what_the_host_uses_is_refused_with_the_key_of_the_file(kernel: LaunchKernel) -> None:
    """`allow` in the table lets go of it."""
    kernel.links["sys/class/net/enp5s0"] = f"../../devices/pci0000:00/{NIC}/net/enp5s0"
    kernel.files["proc/net/route"] = "enp5s0 00000000 01 0003 0 0 0 00000000 0 0 0"
    lease = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
    with pytest.raises(IsolationError, match="carries the default route") as caught:
        plan_and_claim(lease, spec(), looking(kernel, host()))
    assert str(caught.value).endswith('give it another device, or say pci.allow = ["route"]')
    assert kernel.record is None
    plan_and_claim(lease, spec(GIVEN.replace("bridge", "route")), looking(kernel, host()))
    assert kernel.pci.functions[NIC].driver == "vfio-pci"


def test_where_nothing_can_be_bound_it_has_to_be_already(kernel: LaunchKernel) -> None:
    """The kill switch, a container, an ordinary user: the driver is looked at."""
    decided = plan(spec(), host())
    why = "only root can isolate CPUs and bind devices"
    with pytest.raises(IsolationError, match=f"{NIC}: found it bound to e1000e, expected vfio-pci"):
        check_bound(kernel, claim(decided), why)
    for function in kernel.pci.functions.values():
        function.driver = "vfio-pci"
    check_bound(kernel, claim(decided), why)


def test_the_claim_of_a_plan_binds_what_kvm_launch_manages() -> None:
    """Under libvirt that is libvirt's; both claims know whose interrupts are the VM's."""
    decided = plan(spec(head=OWNED), host())
    assert claim(decided) == Claim(
        driver="kvm-launch",
        uuid=decided.uuid,
        name="guest",
        exclusive=CpuSet.parse("2-3"),
        devices=(NIC,),
        demands=[FunctionDemand(NIC, ["bridge"]), FunctionDemand(DISK, ["bridge"])],
    )
    theirs = claim(decided, driver="qemu")
    assert (theirs.devices, theirs.demands, theirs.settings) == ((NIC,), {}, ())
    assert read_claim(domain_xml(decided)) == theirs
    kept = plan(spec(GIVEN.replace('allow = ["bridge"]', "managed = false")), host())
    assert claim(kept).asks_of("functions") == (DISK,)


def test_only_what_nobody_binds_is_looked_at_beforehand() -> None:
    """A device without an address is chosen by the plan."""
    with pytest.raises(SpecError) as caught:
        check(spec())
    assert [problem.at for problem in caught.value.problems] == ["nvme[0].address"]
    check(spec(), binds=True)
    unmanaged = spec(f'[[pci]]\naddress = "{NIC}"\nmanaged = false')
    with pytest.raises(SpecError, match=r"pci\[0\]\.address"):
        check(unmanaged, binds=True)


def test_the_account_of_a_run_names_the_devices() -> None:
    """Beside its CPUs, if it had any."""
    ended = Ended(threads=(), ending="the guest powered off", is_clean=True, report=None)
    outcome = Outcome(ended, (), None, None, Isolated(CpuSet(), devices=(NIC, DISK)))
    lines = outcome_lines(plan(spec(), host()), outcome)
    assert f"host: it had the devices {NIC}, {DISK}" in lines
    assert "host: restored" in lines
    assert not [line for line in lines if "alone" in line]


def test_a_card_makes_functions_for_launched_vms(kernel: LaunchKernel) -> None:
    """The first asks for a pool, the second shares it; with the last it is gone."""
    kernel.pci.plug("0000:08:00.0", Function(8, "ice", ("ice",), total=8))
    before = effective_state(kernel)
    table = '[[pci]]\nsriov = { pf = "enp8s0", pool = 4 }\n'
    card = FakePci("0000:08:00.0", driver="ice", iommu_group=8, total_vfs=8, offset=16, stride=1,
                   net=("enp8s0",))  # fmt: skip
    holds = []
    for name in ("first", "second"):
        vfs = tuple(kernel.pci.functions["0000:08:00.0"].vfs)
        pci = (
            FakePci(**{**card.__dict__, "vfs": vfs}),
            *(FakePci(vf, physfn=card.address, iommu_group=20 + at) for at, vf in enumerate(vfs)),
        )
        with TemporaryDirectory() as folder:
            there = read(write_host(Path(folder), cores=16, numbering="adjacent", pci=pci))
        lease = Lease(Registry(kernel, Record(kernel)), kernel.supervisor)
        decided = plan_and_claim(lease, spec(table, name=name), looking(kernel, there))
        holds.append((lease, str(decided.pci[0].address)))
    addresses = [address for _, address in holds]
    assert addresses == ["0000:08:02.0", "0000:08:02.1"]
    assert len(kernel.pci.functions["0000:08:00.0"].vfs) == 4
    assert [kernel.pci.functions[address].driver for address in addresses] == ["vfio-pci"] * 2
    for lease, _ in holds:
        lease.__exit__(None, None, None)
        assert lease.left == ()
    assert effective_state(kernel) == before
    assert kernel.record is None
