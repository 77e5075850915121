"""The place of a VM on a host: decided by pure functions, with reasons."""

from kvmhooks.inventory.usage import Holding
from kvmhooks.machine.guest_cpu import GuestCpu
from kvmhooks.machine.target import Target
from kvmhooks.machine.topology import Topology
from kvmhooks.placement.claim import claim, scheduler_of
from kvmhooks.placement.contract import to_json
from kvmhooks.placement.model import (
    CacheShare,
    Cell,
    IothreadPin,
    PciPlace,
    Plan,
    VcpuPin,
)
from kvmhooks.placement.plan import parts_of, plan
from kvmhooks.placement.replan import replan, score_of
from kvmhooks.placement.search.search import Effort
from kvmhooks.placement.together import Together, plan_all

__all__ = [
    "CacheShare",
    "Cell",
    "Effort",
    "GuestCpu",
    "Holding",
    "IothreadPin",
    "PciPlace",
    "Plan",
    "Target",
    "Together",
    "Topology",
    "VcpuPin",
    "claim",
    "parts_of",
    "plan",
    "plan_all",
    "replan",
    "scheduler_of",
    "score_of",
    "to_json",
]
