"""The VM that a person asks for: ``vm.toml`` as a frozen ``VmSpec``."""

from kvmhooks.spec.load import load_vm, parse_vm
from kvmhooks.spec.model import (
    Boot,
    Console,
    Cpu,
    Disk,
    Guest,
    Isolation,
    Machine,
    Memory,
    Net,
    Shutdown,
    VmSpec,
)

__all__ = [
    "Boot",
    "Console",
    "Cpu",
    "Disk",
    "Guest",
    "Isolation",
    "Machine",
    "Memory",
    "Net",
    "Shutdown",
    "VmSpec",
    "load_vm",
    "parse_vm",
]
