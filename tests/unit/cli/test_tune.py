"""``kvmhooks tune``: what it prints, what it says, and how it ends."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.values import CpuSet
from tests.fakehost import write_host

DOMAINS = Path(__file__).parents[2] / "golden" / "domains"


@pytest.fixture
def host(tmp_path: Path) -> str:
    """A server with two nodes."""
    root = tmp_path / "host"
    root.mkdir()
    return str(write_host(root, packages=2, cores=8, threads=2, nodes=2, memory_mib=65_536))


def test_the_xml_goes_to_stdout_and_advice_to_stderr(
    host: str, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file and from the standard input alike; the result tuned again is itself."""
    file = DOMAINS / "windows.xml"
    assert main(["tune", str(file), "--host", host]) == 0
    tuned, advice = capfdbinary.readouterr()
    assert b"advice: devices/disk[1]: sata is emulated: virtio is quicker\n" in advice
    assert tuned != file.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(tuned)))
    assert main(["tune", "-", "--host", host]) == 0
    assert capfdbinary.readouterr().out == tuned


def test_check_says_what_could_be_better(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and a line for each thing; 0 and nothing for what is as good as it gets."""
    file = DOMAINS / "web.xml"
    assert main(["tune", str(file), "--host", host, "--check", "--only", "disks,network"]) == 1
    queue = "each vCPU sends and receives on a queue of its own"
    loop = "requests do not wait for QEMU's main loop"
    assert capsys.readouterr().out.splitlines() == [
        f"devices/disk[1]/driver@iothread: nothing -> 1 ({loop})",
        f"iothreads: nothing -> <iothreads>1</iothreads> ({loop})",
        f"devices/interface/driver: nothing -> <driver name='vhost' queues='4'/> ({queue})",
    ]
    assert main(["tune", str(file), "--host", host, "--check", "--only", "clock"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("domain", ["windows", "emulated", "cells"])
def test_no_difference_shows_a_secret(
    domain: str, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passwords and QEMU's own arguments are hidden in diffs, checks and JSON changes."""
    file = str(DOMAINS / f"{domain}.xml")
    for words in (["--diff"], ["--check"], ["--diff", "--json"]):
        main(["tune", file, "--host", host, *words])
        output = capsys.readouterr()
        assert "hunter2" not in output.out + output.err
    main(["tune", file, "--host", host, "--diff"])
    assert f"+++ {file} (tuned)\n" in capsys.readouterr().out


def test_json_has_the_xml_and_the_changes(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each change by its place, with what stood there, what stands there now, and why."""
    file = str(DOMAINS / "cells.xml")
    assert main(["tune", file, "--host", host, "--only", "memory", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["advice"] == []
    assert document["changes"][0] == {
        "concern": "memory",
        "at": "numatune/memory@placement",
        "before": "auto",
        "after": "static",
        "why": "numad knows nothing of the pins",
    }
    assert "<memnode cellid='1' mode='strict' nodeset='1'/>" in document["xml"]


def test_claims_of_other_vms_are_kept_clear_of(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dedicated vCPUs are not put on CPUs that another VM holds."""
    claims = tmp_path / "claims.json"
    other = Claim(
        driver="qemu",
        uuid="00000001-0000-0000-0000-000000000000",
        name="other",
        exclusive=CpuSet.parse("1-2,17-18"),
    )
    claims.write_text(json.dumps([other.to_json()]))
    words = ["tune", str(DOMAINS / "gpu.xml"), "--host", host, "--only", "cpu", "--diff"]
    assert main([*words, "--claims", str(claims)]) == 0
    pins = [line for line in capsys.readouterr().out.splitlines() if "+    <vcpupin" in line]
    assert "cpuset='3'" in pins[0]
    claims.write_text("{}")
    assert main([*words, "--claims", str(claims)]) == 1
    assert "claims: found format None, expected format 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["./no.xml"], 1, "./no.xml: No such file or directory"),
        (["./no.xml", "--only", "cpu,gpu"], 2, "--only: found 'gpu', expected some of profile,"),
        ([str(DOMAINS / "large.xml"), "--host", "/nowhere"], 1, "/nowhere"),
        (["./no.xml", "--profile", "fast"], 2, "--profile: found 'fast', expected one of general,"),
        (["nosuch", "--connect", "qemu:///system?socket=/no"], 1, "/no"),
    ],
)
def test_what_cannot_be_tuned_is_one_message(
    words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong words, files, hosts and domains: each told in words, nothing on stdout."""
    assert main(["tune", *words]) == status
    output = capsys.readouterr()
    assert (output.out, message in output.err, "Traceback" in output.err) == ("", True, False)


def test_running_vms_and_the_hosts_own_cpus_are_kept_clear_of(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start sees them, too: the domain that runs, and `host.housekeeping`."""
    root = Path(host)
    status = root / "run/libvirt/qemu/runs.xml"
    status.parent.mkdir(parents=True)
    status.write_text(
        "<domstatus><vcpus><vcpu id='0' pid='77'/></vcpus><domain id='1'><name>runs</name>"
        "<uuid>00000001-0000-0000-0000-000000000000</uuid></domain></domstatus>"
    )
    (root / "proc/77").mkdir(parents=True)
    (root / "proc/77/status").write_text("Name:\tCPU 0/KVM\nCpus_allowed_list:\t1\n")
    (root / "etc/kvmhooks").mkdir(parents=True)
    (root / "etc/kvmhooks/kvmhooks.toml").write_text('[host]\nhousekeeping = "0,2,16,18"\n')
    words = ["tune", str(DOMAINS / "gpu.xml"), "--host", host, "--only", "cpu", "--diff"]
    assert main(words) == 0
    pins = [line for line in capsys.readouterr().out.splitlines() if "+    <vcpupin" in line]
    assert "cpuset='3'" in pins[0]
