"""The default group's share of the caches: narrowed for libvirt's groups, and given back."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.knobs.resctrl import remaining
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm, World

RESCTRL = "sys/fs/resctrl"
CACHE = "sys/devices/system/cpu/cpu0/cache/index3"
CACHE_FILES = {"level": "3", "id": "0", "size": "12288K"}


@pytest.mark.parametrize(
    ("original", "used", "pending", "left"),
    [
        (0xFFF, 0, [], 0xFFF),
        (0xFFF, 0, [4], 0x0FF),
        (0xFFF, 0xF00, [], 0x0FF),
        (0xFFF, 0xF00, [2], 0x03F),
        (0xFFF, 0x0F0, [4], 0x00F),
        (0xFFF, 0x0F0, [5], 0x003),
        (0xFFF, 0, [2, 4], 0x03F),
        (0x3FF, 0xC00, [2], 0x0FF),
        (0xFFF, 0, [11], 0x003),
    ],
)
def test_what_remains(original: int, used: int, pending: list[int], left: int) -> None:
    """The lowest ways; free ones between two VMs serve a third one that fits in; never too few."""
    assert remaining(original, used, pending, least=2) == left


class Tuned(Vm):
    """A VM with a part of a cache."""

    @property
    def xml(self) -> bytes:
        tune = (
            b"<cachetune vcpus='0'><cache id='0' level='3' type='both' size='2' unit='MiB'/>"
            b"</cachetune></cputune>"
        )
        return super().xml.replace(b"</cputune>", tune)


def test_libvirt_finds_the_ways_it_needs_and_the_host_gets_them_back() -> None:
    """From `start` to `release`; its group's ways stay free for it in between."""
    kernel = Kernel("systemd", 8, 4)
    kernel.files |= {
        f"{RESCTRL}/schemata": "MB:0=100;1=100\nL3:0=fff;1=fff",
        f"{RESCTRL}/info/L3/cbm_mask": "fff",
        f"{RESCTRL}/info/L3/min_cbm_bits": "2",
        **{f"{CACHE}/{name}": text for name, text in CACHE_FILES.items()},
    }
    world = World(kernel)
    a = Tuned("a", CpuSet({6, 7}), CpuSet({0}))
    b = Tuned("b", CpuSet({4, 5}), CpuSet({0}))
    defaults = []
    for vm, group in ((a, "qemu-1-a-vcpus_0"), (b, "qemu-2-b-vcpus_0")):
        world.call(vm, "prepare", "begin")
        world.call(vm, "start", "begin")
        defaults.append(kernel.files[f"{RESCTRL}/schemata"])
        mask = {"a": "c00", "b": "300"}[vm.name]
        kernel.files[f"{RESCTRL}/{group}/schemata"] = f"L3:0={mask};1=fff"
        world.serial += 1
        vm.serial = world.serial
        world._launch(vm)
        world.vms[vm.name] = vm
        world.call(vm, "started", "begin")
    assert defaults == [f"MB:0=100;1=100\nL3:0={mask};1=fff" for mask in ("3ff", "ff")]
    for vm, group, left in ((a, "qemu-1-a-vcpus_0", "ff"), (b, "qemu-2-b-vcpus_0", "fff")):
        del kernel.files[f"{RESCTRL}/{group}/schemata"]
        world.stop(vm)
        assert kernel.files[f"{RESCTRL}/schemata"] == f"MB:0=100;1=100\nL3:0={left};1=fff"
    assert kernel.record is None


def test_a_rehearsal_tells_the_writes(tmp_path: Path) -> None:
    """Of both caches: a cache that one write leaves out stays as it is."""
    plant(Kernel("plain", 8, 2), tmp_path)
    for path, text in {
        f"{RESCTRL}/schemata": "    L3:0=fff;1=fff\n",
        f"{RESCTRL}/info/L3/cbm_mask": "fff\n",
        **{f"{CACHE}/{name}": f"{value}\n" for name, value in CACHE_FILES.items()},
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    xml = Tuned("a", CpuSet({6, 7}), CpuSet({0})).xml
    second = b"<cache id='1' level='3' size='1' unit='MiB'/></cachetune>"
    (tmp_path / "sys/devices/system/cpu/cpu1/cache/index3").mkdir(parents=True)
    for name, value in (CACHE_FILES | {"id": "1"}).items():
        (tmp_path / f"sys/devices/system/cpu/cpu1/cache/index3/{name}").write_text(value)
    claim = read_claim(xml.replace(b"</cachetune>", second))
    assert claim is not None
    writes = [
        write for write in rehearse(claim, str(tmp_path)) if write.path == f"/{RESCTRL}/schemata"
    ]
    assert writes == [
        ("start", f"/{RESCTRL}/schemata", "L3:0=3ff"),
        ("start", f"/{RESCTRL}/schemata", "L3:1=7ff"),
        ("release", f"/{RESCTRL}/schemata", "L3:0=fff"),
        ("release", f"/{RESCTRL}/schemata", "L3:1=fff"),
    ]


def test_a_host_without_resctrl_is_left_alone() -> None:
    """libvirt refuses such a VM itself, or does not; nothing of ours stands in its way."""
    kernel = Kernel("systemd", 8, 4)
    world = World(kernel)
    vm = Tuned("a", CpuSet({6, 7}), CpuSet({0}))
    world.start(vm)
    world.stop(vm)
    assert kernel.record is None
