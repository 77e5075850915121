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
        (["nosuch", "--connect", "qemu:///system?socket=/no"], 3, "/no"),
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


NOVA = (
    "<domain type='kvm'><name>instance-1</name><metadata>"
    "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>"
    "<memory unit='GiB'>1</memory><vcpu>2</vcpu><cputune><vcpupin vcpu='0' cpuset='2'/>"
    "<vcpupin vcpu='1' cpuset='9'/></cputune><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "</domain>"
)


def test_it_says_what_is_gained(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr before the advice, as JSON too, and that there is nothing where nothing is."""
    file = tmp_path / "vm.xml"
    file.write_text(NOVA.replace("nova/1.1", "mine/1.1"))
    words = ["tune", str(file), "--host", host, "--only", "cpu,memory"]
    assert main(words) == 0
    tuned, told = capsys.readouterr()
    assert told.startswith("gains: 1 node instead of 2, ")
    assert main([*words, "--json"]) == 0
    gains = json.loads(capsys.readouterr().out)["gains"]
    assert told.splitlines()[0] == f"gains: {', '.join(gains)}"
    file.write_text(tuned)
    assert main([*words, "--check"]) == 0
    assert capsys.readouterr() == ("", "nothing to gain\n")
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gains"] == []


def test_another_programs_vm_is_moved_only_if_told_to(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--repin` says so; beside `--keep-pins` it is refused."""
    file = tmp_path / "vm.xml"
    file.write_text(NOVA)
    words = ["tune", str(file), "--host", host]
    assert main(words) == 0
    tuned, told = capsys.readouterr()
    assert "<vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='1' cpuset='9'/></cputune>" in tuned
    assert "hpet" in tuned
    assert "advice: OpenStack Nova places this VM, so its pins and nodes stay; others here" in told
    assert main([*words, "--repin"]) == 0
    tuned, told = capsys.readouterr()
    assert "<vcpupin vcpu='1' cpuset='9'/>" not in tuned
    assert "OpenStack Nova" not in told
    assert main([*words, "--repin", "--keep-pins"]) == 2
    assert "--repin: found --keep-pins beside it" in capsys.readouterr().err


def test_what_kvmhooks_xml_wrote_is_left_as_it_is(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kvmhooks xml X | kvmhooks tune --check` exits 0, its card's node counted by both."""
    (device := tmp_path / "host/sys/bus/pci/devices/0000:3b:00.0").mkdir(parents=True)
    for name, text in {
        "class": "0x020000",
        "numa_node": "1",
        "vendor": "0x1",
        "device": "0x1",
    }.items():
        (device / name).write_text(f"{text}\n")
    file, vm = tmp_path / "vm.xml", tmp_path / "vm.toml"
    vm.write_text(
        'name = "vm"\ncpu.vcpus = 4\ncpu.placement = "dedicated"\nmemory.size = "1GiB"\n'
        '[[pci]]\naddress = "0000:3b:00.0"\n'
    )
    assert main(["xml", str(vm), "--host", host]) == 0
    file.write_text(capsys.readouterr().out)
    assert 'nodeset="1"' in file.read_text()
    assert main(["tune", str(file), "--host", host, "--check"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err.splitlines()[0]) == ("", "nothing to gain")
