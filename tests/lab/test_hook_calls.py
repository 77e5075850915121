"""The hook's calls by libvirt, and the things that are there then: a record for isolation work.

The records are golden/RELEASE/hook-calls.*.json; ``--regen`` writes them anew. libvirt 11.3 says
why a guest was stopped (``saved``, say) where 9.0 says ``-``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from . import guests
from .debian import SID, TRIXIE
from .variants import AS_INSTALLED

if TYPE_CHECKING:
    from .conftest import StartLab
    from .lab import Lab
    from .variants import Variant

HERE = Path(__file__).parent
LOG = "/root/hook.log"
HOLDS = "NESTED-HOLD"
Calls = list[dict[str, Any]]


class Recorder:
    """A lab with the logging hook, and what was recorded there."""

    def __init__(self, lab: Lab, name: str = "guest") -> None:
        self.lab = lab
        self.name = name
        self.record: dict[str, Calls] = {}
        hook = HERE / "probes" / "log-hook.py"
        lab.put("/etc/libvirt/hooks/qemu.d/50-log", hook, mode=0o755)
        lab.put("/root/guest.xml", guests.domain(name))
        lab.output(
            f"systemctl reload libvirtd; sleep 1; virsh -q define /root/guest.xml; : > {LOG}"
        )

    def during(self, phase: str, command: str, *, until: str = "true", fails: bool = False) -> None:
        """Record the calls that a command causes, until a condition of the shell holds as well."""
        self.lab.output(f": > {LOG}")
        result = self.lab.run(command, seconds=120)
        assert (result.exit_code != 0) is fails, result
        self.lab.output(f"until {until}; do sleep 0.2; done; sleep 1", seconds=180)
        self.record[phase] = self.calls()

    def calls(self) -> Calls:
        """Return the calls that were logged since the last phase began."""
        return [json.loads(line) for line in self.lab.output(f"cat {LOG}").splitlines()]

    def wait_until_up(self) -> None:
        """Let the guest come up from power-on."""
        guests.wait_for(self.lab, guests.log_of(self.name), HOLDS)


@pytest.fixture
def recorder(lab: Lab) -> Recorder:
    return Recorder(lab)


@pytest.fixture
def golden(variant: Variant, request: pytest.FixtureRequest) -> Golden:
    return Golden(variant.release, is_written=request.config.getoption("--regen"))


class Golden:
    """The records of an earlier day; unstable, which has none, is held to Debian 13's."""

    def __init__(self, release: str, *, is_written: bool) -> None:
        self.release = TRIXIE if release == SID else release
        self.is_written = is_written

    def compare(self, name: str, record: dict[str, Calls]) -> None:
        """Fail on any difference; write them instead where that was asked for."""
        path = HERE / "golden" / self.release / f"hook-calls.{name}.json"
        if self.is_written:
            path.parent.mkdir(exist_ok=True)
            path.write_text(_shown(record))
        assert _shown(record) == path.read_text()


@pytest.mark.once_a_release
def test_calls_in_the_life_of_a_guest(recorder: Recorder, golden: Golden) -> None:
    """From start to shutdown, through libvirtd's restart, save and restore, the order is known."""
    virsh = "virsh -q"
    recorder.during("start", f"{virsh} start guest")
    recorder.wait_until_up()
    recorder.during("suspend and resume", f"{virsh} suspend guest && {virsh} resume guest")
    recorder.during("vcpupin", f"{virsh} vcpupin guest 0 6 --live")
    back = f"{virsh} domstate guest | grep -q running"
    recorder.during("libvirtd restarts", "systemctl restart libvirtd", until=back)
    recorder.during("managed save", f"{virsh} managedsave guest")
    recorder.during("start from managed save", f"{virsh} start guest")
    recorder.during("save to a file", f"{virsh} save guest /root/saved")
    recorder.during("restore from a file", f"{virsh} restore /root/saved")
    off = f"{virsh} domstate guest | grep -q 'shut off'"
    recorder.during("the guest powers off", f"{virsh} shutdown guest", until=off)
    golden.compare("life", recorder.record)


@pytest.mark.once_a_release
def test_calls_when_a_guest_ends_otherwise(recorder: Recorder, golden: Golden) -> None:
    """Destroyed, killed, or killed while libvirtd is down: each end has its known calls."""
    kill = "kill -9 $(cat /run/libvirt/qemu/guest.pid)"
    off = "virsh -q domstate guest | grep -q 'shut off'"
    recorder.lab.output("virsh -q start guest")
    recorder.during("destroy", "virsh -q destroy guest")
    recorder.lab.output("virsh -q start guest")
    recorder.during("QEMU is killed", kill, until=off)
    recorder.lab.output("virsh -q start guest")
    recorder.lab.output("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket")
    down = f"systemctl stop libvirtd && {kill} && sleep 1 && systemctl start libvirtd"
    recorder.during("QEMU is killed while libvirtd is down", down, until=off)
    golden.compare("ends", recorder.record)


@pytest.mark.once_a_release
def test_calls_when_the_hook_refuses(recorder: Recorder, golden: Golden) -> None:
    """libvirt cleans up with known calls, whichever operation the hook refuses."""
    for operation in ("prepare", "start", "started"):
        recorder.lab.output(f"touch /root/refuse-{operation}")
        recorder.during(f"{operation} is refused", "virsh -q start guest", fails=True)
        recorder.lab.output(f"rm /root/refuse-{operation}")
    recorder.lab.output("touch /root/refuse-reconnect; virsh -q start guest")
    off = "virsh -q domstate guest | grep -q 'shut off'"
    recorder.during("reconnect is refused", "systemctl restart libvirtd", until=off)
    golden.compare("refusals", recorder.record)


@pytest.mark.once
@pytest.mark.variants(*AS_INSTALLED)
def test_calls_in_a_migration(start_lab: StartLab, golden: Golden) -> None:
    """A guest that migrates to a second lab causes known calls in either lab."""
    source, target = Recorder(start_lab()), Recorder(start_lab())
    _, address = source.lab.join(target.lab)
    target.lab.output("hostname other")
    target.lab.put("/etc/libvirt/libvirtd.conf", _LISTENING)
    target.lab.output(
        "virsh -q undefine guest; systemctl stop libvirtd; "
        "systemctl start libvirtd-tcp.socket libvirtd"
    )
    source.lab.output("virsh -q start guest")
    source.wait_until_up()
    target.lab.output(f": > {LOG}")
    source.during(
        "source",
        f"virsh -q migrate --live --migrateuri tcp://{address} guest qemu+tcp://{address}/system",
    )
    assert target.lab.output("virsh -q domstate guest") == "running"
    record = {**source.record, "target": target.calls()}
    golden.compare("migration", record)


_LISTENING = """
auth_tcp = "none"
host_uuid = "3f1f2c5e-94a5-4a0b-8f0e-6d3c8a2b1c00"
"""


def _shown(record: dict[str, Calls]) -> str:
    """One call a line, so that a difference reads as one."""
    phases = []
    for phase, calls in record.items():
        lines = ",\n".join(f"    {json.dumps(call)}" for call in calls)
        phases.append(f"  {json.dumps(phase)}: [\n{lines}\n  ]" if calls else f'  "{phase}": []')
    return "{\n" + ",\n".join(phases) + "\n}\n"
