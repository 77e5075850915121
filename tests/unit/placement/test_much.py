"""VMs of which there is too much of something: planned or refused in no time."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.host import Host, read
from kvmhooks.placement import plan
from kvmhooks.spec import parse_vm
from tests.fakehost import write_host

VM = 'name = "a"\ncpu.vcpus = {vcpus}\nmemory.size = "{size}MiB"\n'

ON_PCI = "on PCI Express, expected at most"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with two nodes."""
    return read(write_host(tmp_path_factory.mktemp("host"), packages=2, cores=4, nodes=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            VM.format(vcpus=2048, size=2048) + "memory.cells = 2048",
            "memory.cells: found 2048 cells, expected at most 128, which QEMU has",
        ),
        (
            VM.format(vcpus=1, size=64) + "[[net]]\n" * 241,
            f"machine.type: found 241 devices {ON_PCI} 240, for which the root bus has ports",
        ),
        (
            VM.format(vcpus=1, size=64) + 'sound.model = "ich9"\n' + "[[net]]\n" * 209,
            f"machine.type: found 209 devices {ON_PCI} 208, for which the root bus has ports",
        ),
    ],
)
def test_more_than_a_machine_has_is_refused(text: str, message: str, host: Host) -> None:
    """The number that there can be is said; nothing gets a place that there is not."""
    with pytest.raises(PlanError) as caught:
        plan(parse_vm(text, folder=Path("/vms")), host)
    assert str(caught.value) == message


def test_as_many_devices_as_there_are_ports_for(host: Host) -> None:
    """The last one is in the last slot below the chipset's."""
    spec = parse_vm(VM.format(vcpus=1, size=64) + "[[net]]\n" * 240, folder=Path("/vms"))
    last = plan(spec, host).hardware.layout.ports[-1]
    assert (last.slot, last.function) == (0x1E, 7)


@pytest.mark.parametrize("size", ["1", "{at}"], ids=["alike", "all different"])
def test_many_cells_on_few_nodes_are_decided_in_seconds(size: str, host: Host) -> None:
    """The ways to share nodes are looked at once, whatever the order of cells, and not all."""
    cells = "".join(
        f'[[memory.cell]]\nvcpus = "{at}"\nsize = "{size.format(at=at + 1)}MiB"\n'
        for at in range(60)
    )
    total = 60 if size == "1" else sum(range(1, 61))
    spec = parse_vm(VM.format(vcpus=60, size=total) + cells, folder=Path("/vms"))
    started = time.process_time()
    with contextlib.suppress(PlanError):  # «not all were tried»
        assert len(plan(spec, host).cells) == 60
    assert time.process_time() - started < 10
