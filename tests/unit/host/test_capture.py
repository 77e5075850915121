"""Captures: they read back to the same host, and do not say whose it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kvmhooks.errors import HostError
from kvmhooks.host import read
from kvmhooks.host.capture import CaptureRecorder, _write_tar, capture
from kvmhooks.host.files.redact import Redactor
from tests.fakedevices import FakeIrq, FakePci, nic_with_functions
from tests.fakehost import write_host

if TYPE_CHECKING:
    from pathlib import Path

MAC = "52:54:00:12:34:56"
UUID = "3e1f0a5c-0b1d-4c44-9f8e-3a2b1c0d9e8f"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host whose files say who it is, with some damage."""
    root = write_host(
        tmp_path / "host",
        packages=2,
        threads=2,
        nodes=2,
        offline="3",
        cmdline=f"root=UUID={UUID} ifname=eth0:{MAC} rd.password=hunter2 quiet",
        pci=(
            *nic_with_functions("0000:3b:00.0", 2, total=8, node=1, group=3),
            FakePci("0000:00:02.0", net=("enx525400123456",), block=("nvme0n1",)),
        ),
        irqs=(FakeIrq(33, "nvme0q1", device="0000:00:02.0", counts={1: 4}),),
        files={"proc/1/comm": "systemd", "proc/77/comm": "irqbalance", "proc/78/comm": "secret"},
    )
    (root / "sys/devices/system/cpu/cpu0/topology/core_id").write_text("nonsense")
    fifo = root / "sys/devices/system/cpu/cpu1/topology/die_id"
    fifo.unlink()
    os.mkfifo(fifo)
    return root


@pytest.mark.parametrize("name", ["captured", "captured.tar", "captured.tar.gz", "captured.tar.xz"])
@pytest.mark.parametrize("redacted", [True, False])
def test_a_capture_reads_back_to_the_same_host(
    root: Path, tmp_path: Path, name: str, *, redacted: bool
) -> None:
    """It does as a directory and a tar file; with its warnings, its offline CPU and its devices."""
    captured = capture(tmp_path / name, root, redacted=redacted)
    assert read(tmp_path / name) == captured
    if not redacted:
        assert captured == read(root)
    assert len(captured.warnings) == 2


def test_a_capture_of_a_capture_is_the_same(root: Path, tmp_path: Path) -> None:
    """A file that could not be read the first time is still told of."""
    first = capture(tmp_path / "first", root)
    assert capture(tmp_path / "second", tmp_path / "first") == first
    assert read(tmp_path / "second") == first


def test_a_capture_names_nobody(root: Path, tmp_path: Path) -> None:
    """No MAC, UUID, password or other process is left in any file or name."""
    host = capture(tmp_path / "captured", root)
    kept = [str(path.relative_to(tmp_path)) for path in (tmp_path / "captured").rglob("*")]
    kept += [path.read_text() for path in (tmp_path / "captured").rglob("*") if path.is_file()]
    for secret in (MAC, MAC.replace(":", ""), UUID, "hunter2", "secret", "proc/78"):
        assert [text for text in kept if secret in text] == []
    assert host.kernel is not None
    assert host.kernel.cmdline == "root=removed ifname=removed rd.password=removed quiet"
    assert {name for device in host.pci or () for name in device.net} == {
        "ens3",
        "enx020000000001",
    }
    assert host.features is not None
    assert host.features.irqbalance is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"BOOTIF=01-{MAC.replace(':', '-')}", "BOOTIF=01-02-00-00-00-00-01"),
        (
            f"{MAC} 52:54:00:12:34:57 {MAC.upper()}",
            "02:00:00:00:00:01 02:00:00:00:00:02 02:00:00:00:00:01",
        ),
        ("0000:3b:00.0 00000000,ffffffff 12:34:56", "0000:3b:00.0 00000000,ffffffff 12:34:56"),
        ("systemd.machine_id=0123456789abcdef quiet", "systemd.machine_id=removed quiet"),
        ("console=ttyS0 8250.nr_uarts=4", "console=ttyS0 8250.nr_uarts=4"),
    ],
)
def test_what_is_taken_out(text: str, expected: str) -> None:
    """The same MAC is the same afterwards; addresses and masks are no MACs."""
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cifs_pass=PW passphrase=PW ro", "cifs_pass=removed passphrase=removed ro"),
        ("systemd.set_credential=login:PW", "systemd.set_credential=removed"),
        ('password="two PW" quiet', "password=removed quiet"),
        ('"password=two PW" quiet "two PW', "password=removed quiet removed"),
        ("luks.key=PW api_key=PW tpm_pin=PW", "luks.key=removed api_key=removed tpm_pin=removed"),
        ("ks=http://user:PW@host/x http://user:PW@host/", "ks=removed removed"),
        ("rootpw=a\u2003PW password=a\x1fPW", "rootpw=removed password=removed"),
        ('isolcpus="2 PW" -- key=PW', "isolcpus=removed -- key=removed"),
    ],
)
def test_an_unknown_parameter_keeps_no_value(text: str, expected: str) -> None:
    """Its name and its quotes make no difference."""
    assert Redactor().cmdline(text) == expected


def test_what_the_kernel_was_asked_for_is_kept(tmp_path: Path) -> None:
    """Each parameter that a host is read for says after the redaction what it said before."""
    cmdline = (
        'isolcpus=nohz,domain,2-3 nohz_full="2-3" rcu-nocbs=2-N irqaffinity=0-1 quiet nosmt=force'
        " default_hugepagesz=1G hugepagesz=1G hugepages=0:2,1:2 hugepagesz=2M hugepages=512"
        " intel_iommu=on,sm_on iommu=pt intremap=off pcie_acs_override=downstream preempt=full"
        " vfio-pci.ids=10de:1b80,10de:10f0 mitigations=auto,nosmt transparent_hugepage=never"
    )
    root = write_host(tmp_path / "host", packages=1, threads=2, cmdline=cmdline)
    host = capture(tmp_path / "captured", root)
    assert host == read(root) == read(tmp_path / "captured")
    assert host.kernel is not None
    assert host.kernel.cmdline == cmdline


def test_this_machine_captured_reads_back_the_same(tmp_path: Path) -> None:
    """The live host, whatever it is."""
    captured = capture(tmp_path / "captured")
    assert read(tmp_path / "captured") == captured
    assert captured.cpus


def test_a_destination_with_something_in_it_is_left_alone(root: Path, tmp_path: Path) -> None:
    """Neither a directory that is not empty nor a file that is there is written to."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "mine.tar").write_text("mine")
    with pytest.raises(HostError, match="full: is not empty"):
        capture(tmp_path / "full", root)
    with pytest.raises(HostError, match=r"mine\.tar: cannot be written: File exists"):
        capture(tmp_path / "mine.tar", root)
    assert (tmp_path / "mine.tar").read_text() == "mine"


def test_a_capture_follows_no_link_that_another_has_put_there(root: Path, tmp_path: Path) -> None:
    """Neither in the place of the destination, nor into it while it is written."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "link").symlink_to(outside)
    (tmp_path / "link.tar").symlink_to(outside / "made")
    with pytest.raises(HostError, match="link: cannot be written: Not a directory"):
        capture(tmp_path / "link", root)
    with pytest.raises(HostError, match=r"link\.tar: cannot be written: File exists"):
        capture(tmp_path / "link.tar", root)
    assert list(outside.iterdir()) == []


def test_what_is_put_into_a_destination_meanwhile_is_not_written_through(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination's owner puts a link there as soon as it is seen to be empty."""
    outside = tmp_path / "outside"
    outside.mkdir()
    destination = tmp_path / "captured"
    destination.mkdir()
    listed = os.listdir

    def put(where: int | str | Path) -> list[str]:
        names = listed(where)
        if not names:
            (destination / "sys").symlink_to(outside)
            (destination / "proc").symlink_to(outside)
        return names

    monkeypatch.setattr(os, "listdir", put)
    with pytest.raises(HostError, match="captured: cannot be written: File exists"):
        capture(destination, root)
    assert listed(outside) == []


def test_a_tar_file_that_could_not_be_written_whole_is_not_left(tmp_path: Path) -> None:
    """Here for a text that has no bytes."""
    recorder = CaptureRecorder(None)
    recorder.saw_text("proc/version", "\udcff")
    with pytest.raises(UnicodeEncodeError):
        _write_tar(tmp_path / "captured.tar", recorder)
    assert list(tmp_path.iterdir()) == []
