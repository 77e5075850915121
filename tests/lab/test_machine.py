"""The server is what it says it is: tests can rely on these."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .debian import SID, SUITE, TRIXIE
from .variants import VARIANTS

if TYPE_CHECKING:
    from .lab import Lab

pytestmark = pytest.mark.variants(*VARIANTS)

PCI = "/sys/bus/pci/devices"
DEBIAN = {SUITE: "12.", TRIXIE: "13.", SID: ""}
"""The beginning of ``/etc/debian_version`` in each release; in sid it names the next one."""


def test_cpus_and_nodes(shared_lab: Lab) -> None:
    """Eight CPUs: two sockets of two cores of two threads, each socket a node with one L3."""
    shown = shared_lab.output("lscpu --parse=CPU,SOCKET,CORE,NODE,CACHE | grep -v '#'")
    rows = [line.split(",") for line in shown.splitlines()]
    assert [row[:4] for row in rows] == [
        [str(cpu), str(cpu // 4), str(cpu // 2), str(cpu // 4)] for cpu in range(8)
    ]
    # the caches, the L3 last: columns of their own in util-linux 2.38, "0:0:0:0" in 2.41
    assert [row[-1].rpartition(":")[2] for row in rows] == ["0"] * 4 + ["1"] * 4


def test_kernel_and_init_are_the_variants(shared_lab: Lab) -> None:
    """The kernel, the init, the cgroup version and the variant's own concern are as announced."""
    variant = shared_lab.variant
    name = variant.name
    release = shared_lab.output("uname -r")
    assert release.startswith("6.1.") is not variant.has_remote_partitions
    assert shared_lab.output("cat /etc/debian_version").startswith(DEBIAN[variant.release])
    assert (shared_lab.output("cat /proc/1/comm") == "systemd") is (name != "nosystemd")
    is_v1 = shared_lab.run("test -e /sys/fs/cgroup/cpuset/cpuset.cpus").exit_code == 0
    assert is_v1 is (name == "v1")
    is_balanced = shared_lab.run("pgrep -x irqbalance").exit_code == 0
    assert is_balanced is (name == "irqbalance")
    isolated = shared_lab.output("cat /sys/devices/system/cpu/isolated")
    assert isolated == ("6-7" if name == "isolcpus" else "")
    version = shared_lab.output("qemu-system-x86_64 --version").split()[3]
    assert version.startswith("7.2") is (variant.release == SUITE and name != "qemu10")


def test_kvm_and_libvirt_work(shared_lab: Lab) -> None:
    """/dev/kvm is there, and libvirt has learnt of the emulator that it would use."""
    assert shared_lab.run("test -c /dev/kvm").exit_code == 0
    version = shared_lab.output("qemu-system-x86_64 --version").split()[3]
    running = shared_lab.output("virsh -q version").splitlines()[-1]
    assert running.startswith(f"Running hypervisor: QEMU {version.partition('(')[0]}")


def test_devices_have_iommu_groups_and_nodes(shared_lab: Lab) -> None:
    """The igb is on node 0, the network device on node 1, and each has an IOMMU group."""
    for address, node in (("0000:21:00.0", "0"), ("0000:41:00.0", "1")):
        assert shared_lab.output(f"cat {PCI}/{address}/numa_node") == node
        assert shared_lab.run(f"test -e {PCI}/{address}/iommu_group").exit_code == 0


def test_virtual_functions_can_be_made(lab: Lab) -> None:
    """The igb splits into virtual functions on its node, each with an IOMMU group of its own."""
    lab.output(f"ip link set $(ls {PCI}/0000:21:00.0/net) up; "
               f"echo 2 > {PCI}/0000:21:00.0/sriov_numvfs")  # fmt: skip
    groups = set()
    for number in range(2):
        function = lab.output(f"basename $(readlink {PCI}/0000:21:00.0/virtfn{number})")
        assert lab.output(f"cat {PCI}/{function}/numa_node") == "0"
        groups.add(lab.output(f"basename $(readlink {PCI}/{function}/iommu_group)"))
    assert len(groups) == 2


def test_an_nvme_controller_can_be_plugged_in(lab: Lab) -> None:
    """An SR-IOV NVMe controller comes up on node 1 when it is plugged in after the restore."""
    lab.plug_nvme()
    device = f"{PCI}/0000:42:00.0"
    lab.output(f"until [ -e {device}/driver/0000:42:00.0/nvme/nvme0 ]; do sleep 0.2; done")
    assert lab.output(f"cat {device}/numa_node") == "1"
    assert lab.output(f"cat {device}/sriov_totalvfs") == "4"
