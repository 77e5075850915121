"""The machine: the QEMU process that is the server's hardware.

8 CPUs (2 sockets of 2 cores of 2 threads), 2 NUMA nodes, an IOMMU with interrupt remapping, an igb
with virtual functions and a spare port on node 0, a virtio network device, a port for an NVMe
controller and two edu devices behind a PCI bridge, one IOMMU group, on node 1. Emulated (TCG), so
it runs wherever QEMU does.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import qemu
from .command import run
from .errors import LabError, LabTimeoutError
from .qmp import Qmp

MEMORY_MIB = 6144
QMP_SECONDS = 30.0
FREEZE_SECONDS = 300.0
STOP_SECONDS = 10.0

NVME = {"driver": "nvme", "id": "nvme0", "serial": "LAB0", "bus": "rp3", "subsys": "sub0",
        "sriov_max_vfs": 4, "sriov_vq_flexible": 8, "sriov_vi_flexible": 4, "max_ioqpairs": 20,
        "msix_qsize": 16}  # fmt: skip
"""Plugged in on request: QEMU cannot freeze a machine that has one."""

MIGRATION = [
    {"capability": "mapped-ram", "state": True},
    {"capability": "events", "state": False},
]


@dataclass(frozen=True)
class Boot:
    """The files and words that a machine starts from."""

    kernel: Path
    initrd: Path
    append: str

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return (
            "console=ttyS0 root=/dev/vda rw intel_iommu=on iommu=pt nokaslr mitigations=off quiet"
            " loglevel=4 tsc=reliable systemd.show_status=0 random.trust_cpu=on " + self.append
        )


class Machine:
    """A running machine; it is stopped by its starter."""

    def __init__(self, directory: Path, sockets: Path, process: subprocess.Popen[bytes]) -> None:
        """Use ``boot`` or ``restore``."""
        self.directory = directory
        self.sockets = sockets
        self._process = process
        self._qmp: Qmp | None = None

    @classmethod
    def boot(cls, boot: Boot, *, disk: Path, directory: Path) -> Machine:
        """Start from power-on, with a fresh overlay of this disk image."""
        return cls._start(boot, disk, "raw" if disk.suffix == ".img" else "qcow2", directory, ())

    @classmethod
    def restore(cls, boot: Boot, *, frozen: Path, directory: Path) -> Machine:
        """Start from a frozen state (see ``freeze``), with a fresh overlay of its disk."""
        incoming = ("-incoming", "defer")
        machine = cls._start(boot, frozen / "disk.qcow2", "qcow2", directory, incoming)
        try:
            machine.qmp("migrate-set-capabilities", capabilities=MIGRATION)
            machine.qmp("migrate-incoming", uri=f"file:{frozen / 'state'}")
            machine.connection.migrated(seconds=FREEZE_SECONDS)
            machine.qmp("cont")
        except BaseException:
            machine.stop()
            raise
        return machine

    @property
    def connection(self) -> Qmp:
        """The machine's QMP connection, made at its first use."""
        if self._qmp is None:
            try:
                self._qmp = Qmp(self.sockets / "qmp", seconds=QMP_SECONDS)
            except LabTimeoutError as timeout:
                raise LabError(f"{timeout}; QEMU said: {self.complaints}") from timeout
        return self._qmp

    @property
    def complaints(self) -> str:
        """The text that QEMU wrote to its standard error."""
        return (self.directory / "qemu.err").read_text().strip()

    @property
    def console(self) -> Path:
        """The file with everything that came over the serial line."""
        return self.directory / "console.log"

    @property
    def port(self) -> int:
        """The loopback port that leads to the agent: the kernel chose a free one."""
        shown = self.qmp("human-monitor-command", **{"command-line": "info usernet"})
        (line,) = [line for line in shown.splitlines() if "HOST_FORWARD" in line]
        return int(line.split()[3])

    def qmp(self, command: str, **arguments: object) -> str:
        """Ask QEMU something."""
        answer: str = self.connection.command(command, **arguments)
        return answer

    def freeze(self, into: Path) -> None:
        """Write disk and state into this directory; the machine ends."""
        self.qmp("stop")
        self.qmp("migrate-set-capabilities", capabilities=MIGRATION)
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp("migrate", uri=f"file:{into / 'state'}")
        self.connection.migrated(seconds=FREEZE_SECONDS)
        self.qmp("quit")
        self._process.wait(FREEZE_SECONDS)
        self.stop()
        (self.directory / "disk.qcow2").rename(into / "disk.qcow2")

    def stop(self) -> None:
        """End QEMU, whatever state it is in."""
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        shutil.rmtree(self.sockets, ignore_errors=True)

    @classmethod
    def _start(
        cls, boot: Boot, disk: Path, disk_format: str, directory: Path, more: tuple[str, ...]
    ) -> Machine:
        directory.mkdir(parents=True)
        overlay = directory / "disk.qcow2"
        over = ["-f", "qcow2", "-b", str(disk), "-F", disk_format]
        run([qemu.program("qemu-img"), "create", "-q", *over, overlay], env=qemu.environment())
        with open(directory / "nvme.img", "wb") as file:
            file.truncate(64 << 20)
        # Elsewhere, as the name of a socket may have no more than 107 bytes.
        sockets = Path(tempfile.mkdtemp(prefix="kvmhooks-lab-"))
        wires = _wires(sockets, directory / "console.log")
        arguments = [*_hardware(), *_drives(directory), *wires, *_kernel(boot), *more]
        # The kernel ends QEMU when the thread that started it ends, so even after a SIGKILL.
        argv = ["setpriv", "--pdeathsig=KILL", "--", str(qemu.program("qemu-system-x86_64"))]
        with open(directory / "qemu.err", "wb") as errors:
            process = subprocess.Popen(
                [*argv, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=qemu.environment(),
                start_new_session=True,  # Ctrl-C is for the tests, which then stop it in order
            )
        machine = cls(directory, sockets, process)
        try:
            _wait_until_started(machine, process)
        except BaseException:
            machine.stop()
            raise
        return machine


def _wait_until_started(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + QMP_SECONDS
    while not (machine.sockets / "qmp").exists():
        if process.poll() is not None:
            raise LabError(f"QEMU exited with {process.returncode}: {machine.complaints}")
        if time.monotonic() > end:
            raise LabTimeoutError(
                f"QEMU did not start in {QMP_SECONDS:.0f} s: {machine.complaints}"
            )
        time.sleep(0.02)


def _hardware() -> list[str]:
    half = MEMORY_MIB // 2
    return [
        *qemu.firmware_options(),
        *"-nodefaults -no-user-config -display none -rtc base=utc -name lab".split(),
        *"-machine q35,kernel-irqchip=split,smm=off,vmport=off,hmat=off".split(),
        *"-accel tcg,thread=multi,tb-size=512".split(),
        # Linux sees threads only on a processor that it takes for a Zen.
        "-cpu",
        "max,family=25,model=1,stepping=1,+topoext,xlevel=0x8000001e,x-force-features=on",
        *f"-smp 8,sockets=2,dies=1,cores=2,threads=2 -m {MEMORY_MIB}".split(),
        *f"-object memory-backend-ram,id=m0,size={half}M".split(),
        *f"-object memory-backend-ram,id=m1,size={half}M".split(),
        *"-numa node,nodeid=0,cpus=0-3,memdev=m0 -numa node,nodeid=1,cpus=4-7,memdev=m1".split(),
        *"-numa dist,src=0,dst=1,val=21 -numa dist,src=1,dst=0,val=21".split(),
        # An amd-iommu with interrupt remapping panics, so the AMD processor gets Intel's.
        "-device",
        "intel-iommu,intremap=on,eim=on,caching-mode=on,device-iotlb=on,aw-bits=48",
        # An expander bus per node gives the devices behind it a real numa_node.
        *"-device pxb-pcie,id=pxb0,bus_nr=32,bus=pcie.0,addr=4,numa_node=0".split(),
        *"-device pxb-pcie,id=pxb1,bus_nr=64,bus=pcie.0,addr=5,numa_node=1".split(),
        *"-device pcie-root-port,id=rp0,bus=pxb0,chassis=10,slot=10".split(),
        *"-device pcie-root-port,id=rp1,bus=pxb1,chassis=11,slot=11".split(),
        *"-device pcie-root-port,id=rp2,bus=pxb0,chassis=12,slot=12".split(),
        *"-device pcie-root-port,id=rp3,bus=pxb1,chassis=13,slot=13".split(),
        *"-device pcie-root-port,id=rp4,bus=pxb1,chassis=14,slot=14".split(),
        *"-device pcie-pci-bridge,id=pb0,bus=rp4".split(),
        *"-device edu,bus=pb0,addr=1 -device edu,bus=pb0,addr=2".split(),
    ]


def _drives(directory: Path) -> list[str]:
    disk = f"file={directory / 'disk.qcow2'},if=none,id=hd0,format=qcow2"
    return [
        "-drive",
        f"{disk},cache=unsafe,discard=unmap",
        *"-device virtio-blk-pci,drive=hd0,num-queues=4,bus=pcie.0,addr=2".split(),
        *"-device nvme-subsys,id=sub0,nqn=lab0".split(),
        "-blockdev",
        f"driver=file,filename={directory / 'nvme.img'},node-name=nv0f,locking=off",
        *"-blockdev driver=raw,file=nv0f,node-name=nv0".split(),
    ]


def _wires(sockets: Path, console: Path) -> list[str]:
    serial = f"socket,id=serial,path={sockets / 'serial'},server=on,wait=off"
    return [
        "-chardev",
        f"{serial},logfile={console}",
        *"-serial chardev:serial".split(),
        "-qmp",
        f"unix:{sockets / 'qmp'},server=on,wait=off",
        *"-netdev user,id=agent,restrict=on,hostfwd=tcp:127.0.0.1:0-:5555".split(),
        "-device",
        "virtio-net-pci,netdev=agent,mac=52:54:00:00:55:55,romfile=,bus=pcie.0,addr=3",
        # One wire, hub 0, joins these two; another lab can be joined to it (see Lab.join).
        *"-netdev hubport,id=h2,hubid=0".split(),
        "-device",
        "virtio-net-pci,bus=rp1,netdev=h2,mac=52:54:00:00:02:00,romfile=,vectors=10,id=vn1",
        *"-netdev hubport,id=h0,hubid=0".split(),
        *"-device igb,bus=rp0,netdev=h0,mac=52:54:00:00:01:00,romfile=,id=igb0".split(),
    ]


def _kernel(boot: Boot) -> list[str]:
    return ["-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", boot.command_line]
