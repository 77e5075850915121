"""Read a host, or a captured tree of one, into frozen models.

``read()`` gives a ``Host``; ``to_json()`` the same as the JSON of the project's contract.
"""

from kvmhooks.host.contract import to_json
from kvmhooks.host.model import PARTS, PLANNED, Cache, Cpu, Host, HugePages, Memory, Node
from kvmhooks.host.read import read
from kvmhooks.host.system.system import Kernel, Kvm

__all__ = [
    "PARTS",
    "PLANNED",
    "Cache",
    "Cpu",
    "Host",
    "HugePages",
    "Kernel",
    "Kvm",
    "Memory",
    "Node",
    "read",
    "to_json",
]
