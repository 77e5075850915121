"""The size of a pool of virtual functions: as is configured, or as all known VMs need."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.claims.administrator import HOST
from kvmhooks.isolate.claims.vf_demand import LAUNCHED, LIBVIRTS, known
from kvmhooks.isolate.system.system import System
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.pci import Function
from tests.isolate_model.world import BINDS, GivenVm, World

PF = "0000:05:00.0"
FIRST = "0000:05:02.0"
A_CARD = "the address or the interface of a card of this host"


def machine() -> Kernel:
    """A card that may have eight functions and has none."""
    kernel = Kernel("plain", 16, 4)
    kernel.pci.plug(PF, Function(5, "ice", ("ice",), total=8))
    return kernel


def guest(count: int, name: str = "guest") -> GivenVm:
    """A VM that asks for a pool of this size."""
    policy = BINDS.replace("managed=", f'pools="{PF}={count}" managed=')
    return GivenVm(name, CpuSet.parse("6-7"), CpuSet.parse("0-1"), (FIRST,), policy)


def define(kernel: Kernel, vm: GivenVm) -> None:
    """Have libvirt know a VM."""
    kernel.files[f"{LIBVIRTS}/{vm.name}.xml"] = vm.xml.decode()


def made(kernel: Kernel, vm: GivenVm) -> int:
    """Return the number of functions that the card has once a VM runs."""
    World(kernel).start(vm)
    return len(kernel.pci.functions[PF].vfs)


def test_a_pool_is_as_large_as_the_administrator_says() -> None:
    """By the card's address; the demands of other VMs are not looked at."""
    kernel = machine()
    kernel.files[HOST] = f'[sriov."{PF}"]\nvfs = 4\n'
    define(kernel, guest(6, "other"))
    assert made(kernel, guest(1)) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'[sriov."{PF}"]\nvfs = 1', f"guest: {PF}: found vfs = 1 in /{HOST}, expected 2 or more"),
        (f'[sriov."{PF}"]\nvfs = 9', f"guest: {PF}: found vfs = 9 in /{HOST}, expected 8 at most"),
        (
            f'[sriov."{PF}"]\nvfs = 0',
            f"/{HOST}: sriov.{PF}.vfs: found 0, expected 1 to 65535",
        ),
        (
            f'[sriov."{PF}"]\nvfs = true',
            f"/{HOST}: sriov.{PF}.vfs: found True, expected 1 to 65535",
        ),
        (
            f'[sriov."{PF}"]\nvf = 1',
            f"/{HOST}: sriov.{PF}: found {{'vf': 1}}, expected a table with vfs alone",
        ),
        ("sriov = 3", f"/{HOST}: sriov: found 3, expected a table for each card"),
        ("[sriov.eth9]\nvfs = 1", f"/{HOST}: sriov.eth9: found 'eth9', expected {A_CARD}"),
        ('[sriov."../x"]\nvfs = 1', f"/{HOST}: sriov.../x: found '../x', expected {A_CARD}"),
    ],
)
def test_what_is_said_wrongly_is_refused(text: str, message: str) -> None:
    """And no function is made."""
    kernel = machine()
    kernel.files[HOST] = text
    with pytest.raises(IsolationError) as caught:
        World(kernel).start(guest(2))
    assert message in str(caught.value)
    assert kernel.pci.functions[PF].vfs == []


def test_a_vms_own_file_has_no_pools() -> None:
    """They are the host's."""
    kernel = machine()
    kernel.files["etc/kvmhooks/vm.d/guest.toml"] = f'[sriov."{PF}"]\nvfs = 4\n'
    with pytest.raises(IsolationError, match=f"sriov: found it here, expected it in /{HOST} alone"):
        World(kernel).start(guest(2))


def test_a_pool_is_as_large_as_all_vms_need() -> None:
    """Those of libvirt and of kvm-launch, whether they run or not; each later one finds its own."""
    kernel = machine()
    define(kernel, guest(3, "other"))
    later = f'{{sriov = {{pf = "{PF}", vf = "auto"}}}}, {{sriov = {{pf = "{PF}"}}}}'
    kernel.files[f"{LAUNCHED}/more.toml"] = f'name = "more"\npci = [{later}]'
    kernel.files[f"{LAUNCHED}/some.toml"] = (
        f'name = "some"\n[[pci]]\nsriov = {{pf = "{PF}", vf = 1}}'
    )
    kernel.files[f"{LAUNCHED}/none.toml"] = 'name = "none"\n[[pci]]\nid = "8086:1520"'
    define(kernel, guest(8, "guest"))  # its own definition, which has been changed since
    assert made(kernel, guest(1)) == 5


def test_a_definition_that_cannot_be_read_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps no VM from starting, and is told to the log."""
    kernel = machine()
    told: list[str] = []
    monkeypatch.setattr(kernel, "log", lambda line, *_: told.append(line))
    kernel.files[f"{LIBVIRTS}/broken.xml"] = "<domain xmlns:kvmhooks='https://kvmhooks' <"
    kernel.files[f"{LIBVIRTS}/wrong.xml"] = guest(2).xml.decode().replace(f"{PF}=2", "none")
    kernel.files[f"{LAUNCHED}/broken.toml"] = "name = "
    kernel.files[f"{LAUNCHED}/number.toml"] = "pci = 3"
    kernel.files[f"{LAUNCHED}/odd.toml"] = 'pci = [1, {sriov = 3}, {sriov = {pf = 7, vf = "x"}}]'
    assert made(kernel, guest(2)) == 2
    skipped = sorted(line.partition(": ")[0] for line in told if "not counted" in line)
    assert skipped == [f"/{LAUNCHED}/broken.toml", f"/{LIBVIRTS}/wrong.xml"]


@given(
    count=st.integers(1, 8),
    others=st.lists(st.integers(1, 8), max_size=4),
    chosen_later=st.integers(0, 5),
)
def test_every_known_vm_finds_its_functions(
    count: int, others: list[int], chosen_later: int
) -> None:
    """Each has them as far as the card has so many; and no pool is larger than needed."""
    kernel = machine()
    for at, size in enumerate(others):
        define(kernel, guest(size, f"other{at}"))
    tables = ", ".join(f'{{sriov = {{pf = "{PF}"}}}}' for _ in range(chosen_later))
    kernel.files[f"{LAUNCHED}/later.toml"] = f'name = "later"\npci = [{tables}]'
    needed = max(others, default=0) + chosen_later
    assert known(kernel, PF) == needed
    assert made(kernel, guest(count)) == min(8, max(count, needed))


def test_files_of_others_are_not_believed(tmp_path: Path) -> None:
    """Nor is a link followed, nor a file that anybody can write to."""
    for folder in (LIBVIRTS, LAUNCHED, f"sys/bus/pci/devices/{PF}"):
        (tmp_path / folder).mkdir(parents=True)
    text = f'name = "a"\n[[pci]]\nsriov = {{pf = "{PF}"}}'
    (tmp_path / LAUNCHED / "a.toml").write_text(text)
    assert known(System(f"{tmp_path}/"), PF) == 1
    (tmp_path / LAUNCHED / "b.toml").symlink_to("a.toml")
    (tmp_path / LAUNCHED / "c.toml").write_text(text)
    (tmp_path / LAUNCHED / "c.toml").chmod(0o666)
    assert known(System(f"{tmp_path}/"), PF) == 1
