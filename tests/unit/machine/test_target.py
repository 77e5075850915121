"""The features that are left out, refused or used, by what the target has."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.errors import PlanError
from kvmhooks.machine.qemu_features import BLK_IOTHREADS, SMP_CACHE
from kvmhooks.machine.target import parse_version
from kvmhooks.placement import Target, plan
from kvmhooks.qemu.argv import qemu_argv
from kvmhooks.spec import parse_vm
from tests.golden.cases import golden_host

LEAST = 'name = "a"\ncpu.vcpus = 4\nmemory.size = "1GiB"\n'
NEW = Target(qemu=(10, 1), libvirt=(11, 10))

FEATURES = [
    (Target(), "iothread-vq-mapping of virtio-blk is in QEMU since 9.0, this is 7.2"),
    (
        Target(qemu=(9, 0)),
        "iothread-vq-mapping of virtio-blk is in libvirt since 10.0, this is 9.0",
    ),
    (Target(qemu=(9, 0), libvirt=(10, 0)), None),
    (Target(qemu=(9, 0), libvirt=None), None),
    (Target(qemu=(9, 0), libvirt=None, told=frozenset()), "this is 9.0"),
    (
        Target(libvirt=None, told=frozenset({"virtio-blk-pci.iothread-vq-mapping"})),
        None,
    ),
]


@pytest.mark.parametrize(("target", "lacking"), FEATURES, ids=range(len(FEATURES)))
def test_a_feature_is_there_by_what_the_target_tells_or_its_version(
    target: Target, lacking: str | None
) -> None:
    """QEMU's own word counts more than its version: distributions carry features back."""
    reason = BLK_IOTHREADS.lacking(target)
    assert (reason is None) == (lacking is None)
    assert lacking is None or lacking in (reason or "")


def test_libvirt_may_have_no_word_for_it() -> None:
    """Then no version of it will do."""
    assert SMP_CACHE.lacking(NEW) == "libvirt has no element for smp-cache"


REFUSED = [
    ('machine.type = "microvm"', "machine.type"),
    ('panic.model = "pci"', "panic.model"),
    ('sound.model = "virtio"', "sound.model"),
    ('watchdog.model = "itco"', "watchdog.model"),
    ('cpu.model = "EPYC-v4"', "cpu.model"),
    ('security.type = "sev-snp"', "security.type"),
    ('[[disk]]\npath = "d"\nbus = "nvme"', "disk[0].bus"),
    ('[[filesystem]]\npath = "d"\ntag = "t"\nreadonly = true', "filesystem.readonly"),
]


@pytest.mark.parametrize(("text", "at"), REFUSED, ids=[at for _, at in REFUSED])
def test_what_cannot_be_left_out_is_refused(text: str, at: str) -> None:
    """The place is named, and since when it would be there; a newer target takes it."""
    host = golden_host("chiplets")
    spec = parse_vm(LEAST + text, folder=Path("/"))
    with pytest.raises(PlanError) as raised:
        plan(spec, host)
    assert raised.value.problem.at == at
    assert "is in" in raised.value.problem.expected or "no element" in raised.value.problem.expected
    if at != "machine.type":
        plan(spec, host, target=NEW)
    plan(spec, host, target=Target(qemu=(10, 1), libvirt=None))


def test_io_is_done_by_the_best_that_works() -> None:
    """io_uring where it works; else native, without the page cache only; else threads."""
    text = '[[disk]]\npath = "a"\n[[disk]]\npath = "b"\ncache = "writeback"\n'
    spec = parse_vm(f'{LEAST}{text}[[disk]]\npath = "c"\naio = "io_uring"', folder=Path("/"))
    host = golden_host("laptop")
    old, new = plan(spec, host), plan(spec, host, target=Target(io_uring=True))
    assert [disk.aio for disk in old.hardware.disks] == ["native", "threads", "native"]
    assert [disk.aio for disk in new.hardware.disks] == ["io_uring"] * 3
    left = "disk[2].aio is left out: io_uring is not known to work on this target"
    assert old.hardware.left_out == (left,)
    assert left in old.warnings


def test_the_user_is_taken_by_the_option_that_qemu_has() -> None:
    """``-run-with user`` since 9.1, before it ``-runas``."""
    spec = parse_vm(f'{LEAST}machine.user = "qemu"', folder=Path("/"))
    host = golden_host("laptop")
    assert qemu_argv(plan(spec, host)).count("-runas") == 1
    new = qemu_argv(plan(spec, host, target=NEW))
    assert new[new.index("-run-with") + 1] == "user=qemu"


def test_versions_are_two_numbers() -> None:
    """The rest of a version is of no importance; a text that is none is refused."""
    assert [parse_version(text) for text in ("9.0.0", "10.1", "8")] == [(9, 0), (10, 1), (8, 0)]
    with pytest.raises(ValueError, match="found 'new', expected numbers"):
        parse_version("new")
