"""Guests of the lab: small Linux machines inside it, described for libvirt or for QEMU.

Their init is ``guest/nested-init``: it prints what the guest sees of itself, then powers off, or
waits for the power button where it was asked to hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import LabTimeoutError
from .lab import PATIENCE

if TYPE_CHECKING:
    from .lab import Lab

KERNEL = "/opt/nested/vmlinuz"
INITRD = "/opt/nested/initrd"
COMMAND_LINE = "console=ttyS0 quiet mitigations=off tsc=reliable"
HOLD = "lab.hold"
BOOT_SECONDS = 180.0

DOMAIN = """
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='{log}'/></serial>
  </devices>
</domain>
"""


@dataclass
class Facts:
    """The facts that a guest saw of itself."""

    cpus: dict[int, tuple[int, int, str, int]] = field(default_factory=dict)
    """Package, core, siblings and node of each."""
    nodes: dict[int, tuple[str, int]] = field(default_factory=dict)
    """CPUs and memory in KiB of each."""
    pci: list[str] = field(default_factory=list)
    """Vendor and device of each PCI device, as `lspci -n` has them."""
    nets: dict[str, str] = field(default_factory=dict)
    """The address of each network interface, where a module was loaded late."""


def log_of(name: str) -> str:
    """The file in the lab that a guest's console goes to."""
    return f"/root/{name}.log"


def domain(name: str) -> str:
    """A guest with two vCPUs that holds until its power button is pressed."""
    return DOMAIN.format(
        name=name,
        kernel=KERNEL,
        initrd=INITRD,
        command_line=f"{COMMAND_LINE} {HOLD}",
        log=log_of(name),
    )


def wait_for(lab: Lab, log: str, text: str, seconds: float = BOOT_SECONDS) -> str:
    """The console's text once this is in it."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while text not in (console := lab.run(["cat", log]).stdout):
        if time.monotonic() > end:
            message = f"{log} has no {text!r} after {seconds:.0f} s: {console[-1000:]!r}"
            raise LabTimeoutError(message)
        time.sleep(0.5)
    return console


def facts(console: str) -> Facts:
    """Read what ``guest/nested-init`` printed."""
    seen = Facts()
    for line in console.splitlines():
        match line.split():
            case ["CPU", cpu, package, core, siblings, node]:
                seen.cpus[int(cpu)] = (int(package), int(core), siblings, int(node))
            case ["NODE", node, cpus, memory]:
                seen.nodes[int(node)] = (cpus, int(memory))
            case ["PCI", _, vendor, device]:
                seen.pci.append(f"{vendor[2:]}:{device[2:]}")
            case ["NET", name, address]:
                seen.nets[name] = address
    return seen
