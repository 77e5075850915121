"""The VM that is planned for each host, and the names of the result's files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from kvmhooks.host import Host, read
from kvmhooks.placement import Plan, Target, plan
from kvmhooks.spec import VmSpec, parse_vm
from tests.fakedevices import FakePci
from tests.fakehost import write_host

HERE: Final = Path(__file__).parent
FOLDER: Final = Path("/vms")
"""The folder of the relative paths of the golden VMs: the same everywhere."""

HOSTS: Final[dict[str, dict[str, Any]]] = {
    "laptop": {"cores": 4},
    "old-kernel": {"cores": 4, "nodes": 0, "kvm": None, "cache_ids": False},
    "server": {
        "packages": 2,
        "cores": 4,
        "threads": 2,
        "nodes": 2,
        "memory_mib": 16_384,
        "hugepages": {2048: (1024, 1024), 1_048_576: (4, 4)},
        "files": {"sys/module/kvm_intel/parameters/tdx": "Y"},
    },
    "chiplets": {
        "cores": 8,
        "threads": 2,
        "nodes": 2,
        "l3_cores": 2,
        "numbering": "adjacent",
        "isolated": "14-15",
        "hugepages": {2048: (1024, 768)},
        "kvm": "amd",
        "files": {
            **{f"sys/module/kvm_amd/parameters/{n}": "Y" for n in ("sev", "sev_es", "sev_snp")},
            "proc/cpuinfo": "vendor_id\t: AuthenticAMD",
            "dev/cpu/0/cpuid": "8000001f 17b 173 1fd 64",
        },
    },
    "divided": {
        "packages": 2,
        "cores": 8,
        "threads": 2,
        "nodes": 2,
        "l3_cores": 4,
        "isolated": "4-7,20-23",
        "hugepages": {2048: (0, 0), 1_048_576: (2, 2)},
        "memory_mib": 16_384,
        "files": {
            "sys/fs/resctrl/schemata": "    MB:0=100;1=100;8=100;9=100\n"
            "    L3:0=fff;1=fff;8=fff;9=fff",
            "sys/fs/resctrl/info/L3/cbm_mask": "fff",
            "sys/fs/resctrl/info/L3/min_cbm_bits": "1",
            "sys/fs/resctrl/info/L3/num_closids": "16",
            "sys/fs/resctrl/info/L3/shareable_bits": "c00",
        },
    },
    "cards": {
        "packages": 2,
        "cores": 4,
        "threads": 2,
        "nodes": 2,
        "memory_mib": 16_384,
        "pci": (
            FakePci("0000:3b:00.0", node=0, driver="vfio-pci", iommu_group=1),
            FakePci("0000:af:00.0", class_="0x030000", node=1, iommu_group=2),
            FakePci("0000:af:00.1", class_="0x040300", node=1, iommu_group=2),
            FakePci("0000:c0:00.0", iommu_group=9, total_vfs=4, offset=16, stride=1, net=("ens9",)),
            FakePci("0000:b0:00.0", node=1, iommu_group=3, net=("ens7",)),
            FakePci("0000:b1:00.0", class_="0x010802", node=1, iommu_group=4, block=("nvme0n1",)),
        ),
        "files": {
            "sys/bus/pci/devices/0000:b0:00.0/mdev_supported_types/ens-1/available_instances": "4"
        },
    },
    "hybrid": {"cores": 8, "efficiency": "4-7"},
}
"""Described as ``tests.fakehost`` takes it."""

CASES: Final = (
    ("tiny", "laptop"),
    ("tiny", "server"),
    ("report", "laptop"),
    ("report", "old-kernel"),
    ("report", "server"),
    ("dedicated", "server"),
    ("dedicated", "chiplets"),
    ("wide", "server"),
    ("network", "laptop"),
    ("shape", "server"),
    ("firmware", "laptop"),
    ("emulated", "laptop"),
    ("crowd", "chiplets"),
    ("disks", "laptop"),
    ("processor", "server"),
    ("processor", "server+new"),
    ("windows", "laptop"),
    ("windows", "laptop+new"),
    ("storage", "laptop"),
    ("storage", "laptop+new"),
    ("links", "laptop"),
    ("growing", "server"),
    ("filed", "laptop"),
    ("limits", "laptop"),
    ("idle", "laptop"),
    ("modern", "laptop+new"),
    ("confidential_sev", "chiplets"),
    ("confidential_sev_es", "chiplets"),
    ("confidential_sev_snp", "chiplets+new"),
    ("confidential_tdx", "server+new"),
    ("micro", "laptop+qemu"),
    ("passthrough", "cards"),
    ("named", "cards"),
    ("helped", "laptop+new"),
    ("as_general", "laptop"),
    ("as_compute", "server"),
    ("as_compute", "laptop"),
    ("as_database", "server"),
    ("as_web", "server"),
    ("as_realtime", "divided"),
    ("as_realtime", "chiplets"),
    ("as_desktop", "laptop"),
    ("as_edge", "laptop"),
    ("as_confidential", "chiplets+new"),
    ("as_confidential", "server+new"),
    ("mixed", "server"),
    ("isolated", "divided"),
    ("odd", "chiplets"),
    ("odd", "server"),
    ("whole", "divided"),
    ("small_cores", "hybrid"),
    ("mirror", "laptop"),
)
"""VM, and the host with what runs it there."""

TARGETS: Final[dict[str, Target]] = {
    "": Target(),
    "new": Target(qemu=(10, 1), libvirt=(11, 10), io_uring=True, vhost_net=True),
    "qemu": Target(libvirt=None),
}
"""The target of the VM: the oldest, a new one, kvm-launch alone."""


@cache
def golden_vm(name: str) -> VmSpec:
    """One of the golden VMs."""
    return parse_vm((HERE / "vms" / f"{name}.toml").read_text(), folder=FOLDER)


@cache
def golden_host(name: str) -> Host:
    """One of the golden hosts, written as a tree and read back."""
    with TemporaryDirectory() as folder:
        return read(write_host(Path(folder), **HOSTS[name]))


@cache
def golden_plan(vm: str, host: str) -> Plan:
    """The plan of one case."""
    place, _, target = host.partition("+")
    return plan(golden_vm(vm), golden_host(place), target=TARGETS[target])
