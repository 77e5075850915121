"""A VM that runs: pins that move, vectors that come; and the process that sees to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.cli.status import held_things
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.knobs.vfio_irqs import parse, posted
from kvmhooks.isolate.record.state import Held, State
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.registry.registry import Registry
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.vm import strays
from kvmhooks.isolate.vm.affinity import moved, stale
from kvmhooks.values import CpuSet, union
from tests.isolate_model.kernel import Kernel, Record
from tests.isolate_model.pci import HOSTDEV, Function
from tests.isolate_model.tree import add_process
from tests.isolate_model.world import ISOLATION, Vm, World, effective_state, intruders

HOSTDEV_XML = f"{HOSTDEV}</domain>".encode()
CPUS = st.sets(st.integers(0, 15), min_size=1, max_size=3).map(CpuSet)
PINS = st.dictionaries(st.integers(0, 5), CPUS, max_size=6)


def guest(name: str = "a", cpus: str = "6-7", policy: str = ISOLATION) -> Vm:
    return Vm(name, CpuSet.parse(cpus), CpuSet.parse("0-1"), policy)


@given(st.sets(st.integers(0, 15)).map(CpuSet), PINS, PINS, CPUS)
def test_law_what_is_claimed_follows_the_vcpus(
    exclusive: CpuSet, before: dict[int, CpuSet], live: dict[int, CpuSet], forbidden: CpuSet
) -> None:
    """Nobody else's CPU is taken, none that no vCPU has, and a vCPU that stays keeps its own."""
    owners = {"somebody else's": forbidden}
    now, warnings = moved(exclusive, before, live, owners)
    assert now - exclusive <= union(live.values()) - forbidden
    assert moved(exclusive, live, live, owners)[0] == exclusive
    for vcpu, cpus in live.items():
        is_own = len(cpus) == 1 and cpus.isdisjoint(forbidden)
        assert any(f"vCPU {vcpu} " in warning for warning in warnings) is not is_own
        if is_own and before.get(vcpu) != cpus:
            assert cpus <= now
        was = before.get(vcpu, CpuSet())
        if len(was) == 1 and cpus != was and was.isdisjoint(union(live.values())):
            assert was.isdisjoint(now)
    unplugged = union(cpus for vcpu, cpus in before.items() if vcpu not in live)
    gone = union(before[vcpu] for vcpu in live.keys() & before.keys())
    assert (exclusive & unplugged) - gone <= now


def thread(kernel: Kernel, name: str) -> int:
    return next(tid for tid, task in kernel.tasks.items() if task.name == name)


def follow(world: World, vm: Vm) -> Any:
    me = Process(world.kernel.libvirtd, world.kernel.tasks[world.kernel.libvirtd].start)
    return Registry(world.kernel, Record(world.kernel)).follow(vm.key, me)


@pytest.mark.parametrize("flavour", ["systemd", "plain", "legacy"])
def test_a_vcpu_that_is_pinned_elsewhere_takes_its_isolation_along(flavour: str) -> None:
    """`virsh vcpupin a 1 4`: nothing else runs on 4 any more, and 7 is the host's again."""
    kernel = Kernel(flavour, 8, 10)
    before = effective_state(kernel)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    inner = vm.scope if flavour == "legacy" else f"{vm.scope}/libvirt"
    kernel.put(f"{kernel.base}/{inner}/vcpu1/cpuset.cpus", "4")
    kernel.pin(thread(kernel, "CPU 1/KVM"), CpuSet({4}))
    held = world.state.held[vm.key]
    assert stale(kernel, held) == "vCPU 1 is on 4 and was on 7"
    told = held_things(world.registry, world.state)["claims"][0]
    assert (told["stale"], told["follower"]) == ("vCPU 1 is on 4 and was on 7", "missing")
    follow(world, vm)
    held = world.state.held[vm.key]
    assert (str(held.claim.exclusive), stale(kernel, held), held.warnings) == ("4,6", "", ())
    vm.cpus = CpuSet.parse("4,6")
    assert list(intruders(kernel, world)) == []
    assert 7 in kernel.default
    world.stop(vm)
    assert effective_state(kernel) == before


def test_a_vcpu_that_may_run_anywhere_has_nothing_of_its_own() -> None:
    """Its CPU goes back to the host, the other one stays; a person is told."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm, other = guest(cpus="5-6"), guest("b", "7")
    world.start(vm)
    world.start(other)
    scope = f"{kernel.base}/{vm.scope}/libvirt"
    kernel.put(f"{scope}/vcpu0/cpuset.cpus", "0-5")
    kernel.pin(thread(kernel, "CPU 0/KVM"), CpuSet.parse("0-5"))
    kernel.put(f"{scope}/vcpu1/cpuset.cpus", "7")
    kernel.pin(thread(kernel, "CPU 1/KVM"), CpuSet({7}))
    follow(world, vm)
    held = world.state.held[vm.key]
    assert held.claim.exclusive == CpuSet()
    assert held.warnings == (
        "vCPU 0 may run on 0-5: none of them is its own",
        "vCPU 1 runs on 7, which cannot be its own: it is b's alone",
    )
    assert str(world.state.held[other.key].claim.exclusive) == "7"


THE_HOSTS = "the host's (/etc/kvmhooks/kvmhooks.toml: host.housekeeping)"


def put_housekeeping(kernel: Kernel, cpus: str) -> None:
    kernel.files["etc/kvmhooks/kvmhooks.toml"] = f'[host]\nhousekeeping = "{cpus}"\n'


@pytest.mark.parametrize("flavour", ["systemd", "plain", "legacy"])
@pytest.mark.parametrize(
    ("cpu", "owner", "warning"),
    [
        (4, "", ""),
        (2, "2", f"vCPU 2 runs on 2, which cannot be its own: it is {THE_HOSTS}"),
    ],
)
def test_a_vcpu_that_is_plugged_in_owns_its_cpu_or_a_person_is_told(
    flavour: str, cpu: int, owner: str, warning: str
) -> None:
    """`virsh vcpupin` of a vCPU that is not there yet, and `virsh setvcpus --live`: nothing else
    runs on its CPU, or it is said whose that is; it stays when it is unplugged again, and after the
    stop all is as before."""
    kernel = Kernel(flavour, 8, 10)
    put_housekeeping(kernel, owner)
    before = effective_state(kernel)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    follow(world, vm)
    tid = world.plug(vm, 2, cpu)
    assert stale(kernel, world.state.held[vm.key]) == f"vCPU 2 is on {cpu} and is new"
    for _ in range(2):
        follow(world, vm)
        held = world.state.held[vm.key]
        assert held.warnings == ((warning,) if warning else ())
        assert held.claim.exclusive == vm.cpus | (CpuSet() if warning else CpuSet({cpu}))
        assert (cpu in kernel.default) is (cpu == 2)
    if not warning:
        vm.cpus |= CpuSet({cpu})
        assert list(intruders(kernel, world)) == []
        kernel.end(tid)
        follow(world, vm)
        assert world.state.held[vm.key].claim.exclusive == vm.cpus
    world.stop(vm)
    assert effective_state(kernel) == before


def test_a_mistake_in_the_hosts_file_keeps_no_vcpu_from_its_cpu() -> None:
    """It is told as it is, and the claimed CPUs follow the vCPUs as ever."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    put_housekeeping(kernel, "x")
    world.plug(vm, 2, 4)
    follow(world, vm)
    held = world.state.held[vm.key]
    assert str(held.claim.exclusive) == "4,6-7"
    (warning,) = held.warnings
    assert warning.startswith("/etc/kvmhooks/kvmhooks.toml: host.housekeeping: found 'x'")


def test_a_cpu_that_is_kept_for_another_vm_is_not_taken() -> None:
    """One that comes by migration would be refused when it arrives."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    claim = read_claim(guest("b", "4").xml)
    assert claim is not None
    world.registry.reserve(claim, 60)
    world.plug(vm, 2, 4)
    follow(world, vm)
    held = world.state.held[vm.key]
    assert str(held.claim.exclusive) == "6-7"
    assert held.warnings == ("vCPU 2 runs on 4, which cannot be its own: it is b's alone",)


def test_the_last_cpu_stays_the_hosts() -> None:
    """It does, wherever the vCPUs are pinned; the message says so."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm = guest(cpus="1-7")
    vm.emulator = CpuSet({0})
    world.start(vm)
    world.plug(vm, 7, 0)
    follow(world, vm)
    held = world.state.held[vm.key]
    assert str(held.claim.exclusive) == "1-7"
    assert held.warnings == (
        "vCPU 7 runs on 0, which cannot be its own: it is the last that the host has",
    )


@pytest.mark.parametrize(
    ("driver", "remedy"),
    [("qemu", ": run `virsh emulatorpin a CPUS --live`"), ("kvm-launch", "")],
)
def test_an_emulator_on_its_vcpus_cpus_is_told_of(driver: str, remedy: str) -> None:
    """By `status` as it is now, and by the log when it is new: once, and again after it was not."""
    kernel = Kernel("systemd", 8, 10)
    logged: list[str] = []
    kernel.log = lambda line, **_: logged.append(line)  # type: ignore[method-assign]
    world = World(kernel)
    vm = guest()
    world.start(vm)
    held = world.state.held[vm.key]
    held.claim.driver = driver
    aloud = strays.Aloud(kernel)
    warning = f"the emulator may run on 6, which its vCPUs should have alone{remedy}"
    for cpus, warnings in (
        ("0-1", []),
        ("0,6", [warning]),
        ("6", [warning]),
        ("0", []),
        ("5-6", [warning]),
    ):
        kernel.put(f"{kernel.base}/{vm.scope}/libvirt/emulator/cpuset.cpus", cpus)
        kernel.pin(vm.pid, CpuSet.parse(cpus))
        assert strays.told(kernel, held) == warnings
        aloud.tell(held)
    assert logged == [f"a: {warning}", f"a: {warning}"]
    held.state = "pending"
    assert strays.told(kernel, held) == []
    aloud.tell(None)


def test_an_io_thread_on_its_vcpus_cpus_is_told_of_by_its_number() -> None:
    """Each has a pin of its own."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    tid = kernel.spawn("IO iothread3", group=vm.scope, leader=vm.pid)
    world._place(vm, tid, f"{vm.scope}/libvirt/iothread3", CpuSet({7}))
    (warning,) = strays.told(kernel, world.state.held[vm.key])
    assert warning.startswith("I/O thread 3 may run on 7, which its vCPUs should have alone: ")
    assert warning.endswith("run `virsh iothreadpin a 3 CPUS --live`")


def test_a_follower_ends_with_its_claim() -> None:
    """And keeps nothing up that nobody claims."""
    kernel = Kernel("plain", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    world.stop(vm)
    assert follow(world, vm) is None
    assert kernel.record is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("spread", ["6", "7", "6"]), ("one", ["6"] * 3), ("housekeeping", ["0-4"] * 3)],
)
def test_vectors_of_a_vms_device_go_to_its_cpus(policy: str, expected: list[str]) -> None:
    """They come long after `started`; another VM's device and the host's own stay off them."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest(policy=f'<kvmhooks:isolation exclusive="yes" vfio="{policy}"/>')
    vm.devices = HOSTDEV
    other = guest("b", "5")
    world.start(vm)
    world.start(other)
    numbers = [kernel.add_irq() for _ in range(4)]
    for vector, number in enumerate(numbers[:3]):
        kernel.irqs[number].action = f"vfio-msix[{vector}](0000:01:10.0)"
    kernel.irqs[numbers[3]].action = "vfio-msix[0](0000:02:00.0)"
    follow(world, vm)
    assert [str(kernel.irqs[number].mask) for number in numbers] == [*expected, "0-4"]
    Registry(kernel, Record(kernel)).undo(None)
    assert {str(kernel.irqs[number].mask) for number in numbers} == {"0-7"}


def test_a_device_that_is_attached_later_is_the_vms() -> None:
    """By what libvirt keeps of the VM; one that is detached is not any more, and a record that
    cannot be read changes nothing."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest()
    world.start(vm)
    number = kernel.add_irq()
    kernel.irqs[number].action = "vfio-msix[1](0000:01:10.0)"
    record = f"run/libvirt/qemu/{vm.name}.xml"
    plain = vm.xml.decode()
    vm.devices = HOSTDEV
    with_device = vm.xml.decode()
    masks = {}
    for name, text in (
        ("before", plain),
        ("attached", with_device),
        ("unreadable", "<domstatus><domain"),
        ("no domain", "<domstatus/>"),
        ("detached", plain),
    ):
        kernel.files[record] = text if name == "no domain" else f"<domstatus>{text}</domstatus>"
        follow(world, vm)
        masks[name] = str(kernel.irqs[number].mask)
    assert masks == {
        "before": "0-5",
        "attached": "7",
        "unreadable": "7",
        "no domain": "7",
        "detached": "0-5",
    }
    world.stop(vm)
    assert str(kernel.irqs[number].mask) == "0-7"


def test_vectors_that_are_the_hosts_are_near_to_their_device() -> None:
    """They go there as far as the host may have those CPUs; where nothing is near, anywhere."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    vm = guest(policy='<kvmhooks:isolation exclusive="yes" vfio="housekeeping"/>')
    vm.devices = HOSTDEV
    number = kernel.add_irq()
    kernel.irqs[number].action = "vfio-msix[0](0000:01:10.0)"
    local = "sys/bus/pci/devices/0000:01:10.0/local_cpulist"
    for cpus, expected in (("4-7", "4-5"), ("6-7", "0-5"), ("0-7", "0-5")):
        kernel.files[local] = cpus
        world.start(vm)
        assert str(kernel.irqs[number].mask) == expected
        world.stop(vm)
        assert str(kernel.irqs[number].mask) == "0-7"


def test_interrupts_of_a_functions_card_are_near_to_it() -> None:
    """The card serves the VM's function; other cards' interrupts go anywhere else, as ever."""
    kernel = Kernel("systemd", 8, 10)
    world = World(kernel)
    card, other = "0000:01:00.0", "0000:02:00.0"
    own, foreign = kernel.add_irq(), kernel.add_irq()
    kernel.pci.plug(card, Function(1, "ice", irqs=(own,)))
    kernel.pci.plug(other, Function(2, "ice", irqs=(foreign,)))
    kernel.pci.plug("0000:01:10.0", Function(3, "vfio-pci", card=card))
    for each in (card, other):
        kernel.files[f"sys/bus/pci/devices/{each}/local_cpulist"] = "4-7"
    vm = guest()
    vm.devices = HOSTDEV
    world.start(vm)
    assert [str(kernel.irqs[number].mask) for number in (own, foreign)] == ["4-5", "0-5"]
    world.stop(vm)
    assert [str(kernel.irqs[number].mask) for number in (own, foreign)] == ["0-7", "0-7"]


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ("vfio-msix[12](0000:01:10.0)", (12, "0000:01:10.0")),
        ("vfio-msi[0](0000:01:10.0)", (0, "0000:01:10.0")),
        ("vfio-intx(0000:01:10.0)", (0, "0000:01:10.0")),
        ("vfio-intx", (0, "")),
        ("nvme0q1", (0, "")),
        ("", (0, "")),
        ("(vfio-msix[0](0000:01:10.0)", (0, "")),
    ],
)
def test_the_kernels_name_of_a_vector(actions: str, expected: tuple[int, str]) -> None:
    assert parse(actions) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"kvm_intel/parameters/enable_apicv": "Y"}, True),
        ({"kvm_intel/parameters/enable_apicv": "N"}, False),
        ({}, False),
    ],
)
def test_posted_interrupts_make_it_moot(
    tmp_path: Path,
    files: dict[str, str],
    expected: bool,  # noqa: FBT001
) -> None:
    """KVM and each IOMMU must be able to, and the command line not forbid it."""
    texts = {f"sys/module/{path}": text for path, text in files.items()}
    texts |= {f"sys/class/iommu/dmar{n}/intel-iommu/cap": "8d2078c106f0466" for n in (0, 1)}
    texts["proc/cmdline"] = "quiet"
    for name, text in texts.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    system = System(str(tmp_path))
    assert bool(posted(system)) is expected
    state = State("")
    claim = read_claim(Vm("a", CpuSet({6}), CpuSet({0})).xml.replace(b"</domain>", HOSTDEV_XML))
    assert claim is not None
    add_process(tmp_path, 4_000)
    state.held["a"] = Held(claim, holder=Process(4_000, 77))
    registry = Registry(system, Store(str(tmp_path)))
    warnings = held_things(registry, state)["claims"][0]["warnings"]
    assert any("moot" in warning for warning in warnings) is expected
    (tmp_path / "proc/cmdline").write_text("intremap=nopost")
    assert posted(system) == ""
