"""Where a VM lives on a host: decided by pure functions, with reasons."""

from kvmhooks.placement.claim import claim
from kvmhooks.placement.contract import to_json
from kvmhooks.placement.model import Cell, GuestCpu, IothreadPin, Plan, Topology, VcpuPin
from kvmhooks.placement.plan import plan
from kvmhooks.placement.target import Target

__all__ = [
    "Cell",
    "GuestCpu",
    "IothreadPin",
    "Plan",
    "Target",
    "Topology",
    "VcpuPin",
    "claim",
    "plan",
    "to_json",
]
