"""The taps that are opened for QEMU: ports of a bridge, and macvtaps (``qemu.passed_files``).

Documentation/networking/tuntap.rst of the kernel. A tap that is not persistent goes with the last
file of it, so with QEMU, however that ends. A macvtap stays until it is removed. Its name follows
from the VM's UUID and its alias names the VM's lock, so what a killed kvm-launch has left is found
by whichever starts next.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from kvm_launch.spawn import links
from kvmhooks.errors import LaunchError
from kvmhooks.placement.model import Plan
from kvmhooks.qemu.passed_files import Handle, handles
from kvmhooks.qemu.run_dir import is_held
from kvmhooks.spec.network import Net

TUN: Final = Path("/dev/net/tun")
VHOST: Final = Path("/dev/vhost-net")
NETS: Final = Path("/sys/class/net")
PATTERN: Final = "kvmtap%d"
"""The kernel puts the first number in it that is free."""

OURS: Final = "kvm-launch "
"""The beginning of the alias of a macvtap of ours; the VM's lock follows."""

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthrough": 8}
"""``IFLA_MACVLAN_MODE`` (linux/if_link.h)."""

IFLA_MACVLAN_MODE: Final = 1


@contextmanager
def opened(plan: Plan, nodes: Path) -> Iterator[dict[int, int]]:
    """Give the open files of every handle of ``plan``: descriptors to the numbers that QEMU knows.

    They are closed, and macvtaps removed, when the context is left; a device that ``/dev`` lacks is
    made below ``nodes`` while it is opened. Raises ``LaunchError``; nothing is left then.
    """
    files: dict[int, int] = {}
    with ExitStack() as stack:
        if os.geteuid() == 0:
            sweep()
        for at, net in enumerate(plan.spec.net):
            wanted = [each for each in handles(plan) if each.device == f"net{at}"]
            if not wanted:
                continue
            try:
                files |= _opened(plan, at, net, wanted, nodes, stack)
            except OSError as error:
                place = "" if error.filename is None else f"{error.filename}: "
                message = f"net[{at}].device: {net.device}: {place}{error.strerror}"
                raise LaunchError(message) from error
        yield files


def _opened(
    plan: Plan, at: int, net: Net, wanted: list[Handle], nodes: Path, stack: ExitStack
) -> dict[int, int]:
    assert net.device is not None
    queues = [each.number for each in wanted if each.kind == "tap"]
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if len(queues) > 1 else 0)
    name = PATTERN
    device = TUN
    if net.type == "macvtap":
        name = macvtap_name(plan.uuid, at)
        links.remove(name)  # of a kvm-launch that was killed: the VM's lock is ours
        mode = links.attribute(IFLA_MACVLAN_MODE, struct.pack("=I", MODES[net.mode]))
        links.add(name, "macvtap", below=net.device, mac=plan.macs[at], data=mode)
        stack.callback(links.remove, name)
        links.set_alias(name, f"{OURS}{lock_of(nodes)}")
        device = _node(name, nodes, stack)
    files = {}
    for number in queues:
        file = _open(device, stack)
        files[file] = number
        name = _set_interface(file, name, flags)
    if net.type == "bridge":
        links.set_mtu(name, net.mtu or links.mtu_of(net.device))
        links.set_mac(name, port_mac(plan.macs[at]))
        links.add_port(net.device, name)
    links.bring_up(name)
    for each in wanted:
        if each.kind == "vhost":
            files[_open(VHOST, stack)] = each.number
    return files


def sweep(nets: Path = NETS) -> None:
    """Remove macvtaps of kvm-launches that were killed: nobody holds their VMs' locks any more.

    Raises ``LaunchError``.
    """
    for alias in nets.glob("kvm????????????/ifalias"):
        try:
            text = alias.read_text().strip()
            if text.startswith(OURS) and not is_held(Path(text.removeprefix(OURS))):
                links.remove(alias.parent.name)
        except FileNotFoundError:  # it went by itself
            continue
        except OSError as error:
            raise LaunchError(f"{alias.parent.name}: {error.strerror}: a macvtap that a "
                              "kvm-launch has left cannot be removed") from error  # fmt: skip


def lock_of(nodes: Path) -> Path:
    """Return the lock of the VM whose run directory is ``nodes`` (``kvmhooks.qemu.run_dir``)."""
    return nodes.with_name(f".{nodes.name}.lock")


def macvtap_name(uuid: str, at: int) -> str:
    """Return the name of the macvtap of a VM's interface: always the same, and at most 15 bytes."""
    return "kvm" + hashlib.sha256(f"{uuid}/net{at}".encode()).hexdigest()[:12]


def port_mac(mac: str) -> str:
    """Return the address of a bridge's port: high, since a bridge takes on its ports' lowest.

    (``br_stp_recalculate_bridge_id()``, net/bridge/br_stp_if.c.)
    """
    return f"fe{mac[2:]}"


def _open(path: Path, stack: ExitStack) -> int:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    stack.callback(os.close, file)
    return file


def _set_interface(file: int, name: str, flags: int) -> str:
    """Make an open device a queue of the tap ``name``, and give the name that it has."""
    asked = struct.pack(f"={links.IFNAMSIZ}sH22x", name.encode(), flags)
    return fcntl.ioctl(file, TUNSETIFF, asked)[: links.IFNAMSIZ].rstrip(b"\0").decode()


def _node(name: str, nodes: Path, stack: ExitStack) -> Path:
    """Return the character device of a macvtap: ``/dev/tapN`` with the number of its interface."""
    index = links.index_of(name)
    path = Path(f"/dev/tap{index}")
    if path.exists() and stat.S_ISCHR(path.stat().st_mode):
        return path
    for file in (NETS / name).glob(f"**/tap{index}/dev"):
        major, minor = map(int, file.read_text().split(":"))
        made = nodes / f"tap{index}"
        os.mknod(made, stat.S_IFCHR | 0o600, os.makedev(major, minor))
        stack.callback(made.unlink, missing_ok=True)
        return made
    raise FileNotFoundError(2, "the kernel made no device for it", str(path))
