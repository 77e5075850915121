"""Claims as they were before demands had fields of their own, and back.

Devices were lists in the settings' own notation. A record of that time may hold such claims, a
supervisor that was started then reads them as long as its VM runs, and people may have them in
files (``record.format_2``).
"""

from __future__ import annotations

from kvmhooks.isolate.kinds.bound_functions import FunctionDemand
from kvmhooks.isolate.kinds.hugepage_pools import HugePageDemand
from kvmhooks.isolate.kinds.kind import KINDS, from_settings, to_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from kvmhooks.isolate.kinds.kind import Demand

_ALLOW: Final = "devices.allow"


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a claim of format 1 in format 2. Raises ``ValueError`` and its kin."""
    kept = {**document}
    settings = {str(name): str(text) for name, text in kept["settings"].items()}
    allow = filter(None, settings.pop(_ALLOW, "").split(","))
    uses = tuple(use for use in allow if use != "none")
    demands: list[Demand] = [*map(HugePageDemand.from_json, kept.pop("hugepages"))]
    demands += from_settings(settings)
    demands += [FunctionDemand(str(address), uses) for address in kept.pop("bound", ())]
    resources: dict[str, list[dict[str, Any]]] = {}
    for demand in demands:
        resources.setdefault(demand.KIND, []).append(demand.to_json())
    return kept | {"format": 2, "settings": settings, "resources": resources}


def downgraded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a claim of format 2 in format 1. Raises ``ValueError`` and its kin."""
    kept = {**document}
    kept.pop("origins", None)
    demands = {
        kind: tuple(map(KINDS[kind].demand.from_json, several))
        for kind, several in kept.pop("resources").items()
    }
    functions = demands.get(FunctionDemand.KIND, ())
    uses = dict.fromkeys(use for function in functions for use in function.allow)  # type: ignore[attr-defined]
    settings = kept["settings"] | to_settings(demands) | ({_ALLOW: ",".join(uses)} if uses else {})
    return kept | {
        "format": 1,
        "hugepages": [pages.to_json() for pages in demands.get(HugePageDemand.KIND, ())],
        "settings": dict(sorted(settings.items())),
        "bound": [function.key for function in functions],
    }
