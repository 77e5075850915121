"""The holdings of running VMs: from our own record, and from libvirt's where there is no claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import HostError
from kvmhooks.inventory.usage import Holding
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.record.state import RUNNING, Held, State, boot_id
from kvmhooks.isolate.record.store import Store
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.system.system import System
from kvmhooks.survey.running import live_holdings
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

CLAIMED = "11111111-1111-1111-1111-111111111111"
PINNED = "22222222-2222-2222-2222-222222222222"
PAGES = ((0, 2048, 8),)

# As qemuDomainObjPrivateXMLFormatVcpus (libvirt, src/qemu/qemu_domain.c) writes it.
STATUS = """\
<domstatus state='running' reason='booted' pid='400'>
  <vcpus>
    <vcpu id='0' pid='{first}'/>
    <vcpu id='1' pid='{second}'/>
    <vcpu id='2' pid='999'/>
  </vcpus>
  <domain type='kvm' id='1'>
    <name>{name}</name>
    <uuid>{uuid}</uuid>
  </domain>
</domstatus>
"""


def _claim(number: int, cpus: str) -> Claim:
    uuid = CLAIMED if number == 1 else CLAIMED.replace("1", "3")
    return Claim(
        driver="qemu",
        uuid=uuid,
        name=f"claimed{number}",
        exclusive=CpuSet.parse(cpus),
        demands=[HugePageDemand(*pages) for pages in PAGES],
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with two claims, one of them of a VM that runs, and two domains."""
    write_host(tmp_path, cores=8)
    state = State(boot_id(System(str(tmp_path))))
    for number, cpus, how in ((1, "1-2", RUNNING), (3, "3", "pending")):
        held = Held(_claim(number, cpus), holder=Process(1, 1), state=how)
        state.held[held.claim.key] = held
    store = Store(str(tmp_path))
    store.save(state.to_text())
    store.close()
    for thread, cpus in ((401, "1"), (402, "2"), (501, "4"), (502, "4-7")):
        status = tmp_path / f"proc/{thread}/status"
        status.parent.mkdir(parents=True)
        status.write_text(f"Name:\tCPU 0/KVM\nCpus_allowed_list:\t{cpus}\n")
    folder = tmp_path / "run/libvirt/qemu"
    folder.mkdir(parents=True)
    for name, uuid, first in (("claimed1", CLAIMED, 401), ("pinned", PINNED, 501)):
        text = STATUS.format(name=name, uuid=uuid, first=first, second=first + 1)
        (folder / f"{name}.xml").write_text(text)
    (folder / "pinned.pid").write_text("400\n")
    return tmp_path


def test_claims_and_pins_are_found(root: Path) -> None:
    """Pages of a VM that runs are mapped; a thread that has ended is left out."""
    assert live_holdings(str(root)) == (
        Holding(name="claimed1", uuid=CLAIMED, exclusive=CpuSet.parse("1-2")),
        Holding(
            name="claimed3",
            uuid=CLAIMED.replace("1", "3"),
            exclusive=CpuSet([3]),
            hugepages=PAGES,
        ),
        Holding(
            name="pinned",
            uuid=PINNED,
            dedicated=CpuSet([4]),
            floating=((CpuSet.parse("4-7"), 1),),
        ),
    )


def test_a_host_where_nothing_runs_is_free(tmp_path: Path) -> None:
    """Without a record, and without libvirt."""
    assert live_holdings(str(write_host(tmp_path))) == ()


def test_what_is_no_status_is_an_error(root: Path) -> None:
    """It names the file; nothing is planned as if that VM were not there."""
    (root / "run/libvirt/qemu/pinned.xml").write_text("<domstatus")
    with pytest.raises(HostError, match=r"^/run/libvirt/qemu/pinned\.xml: "):
        live_holdings(str(root))
