"""What is imported late, loaded while its files are those of this version.

A VM may run for months, and its package be upgraded under it: what its supervisor imported after
that would be another version's. Modules that are loaded stay as they are.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Final

PACKAGES: Final = (
    *("kvm_launch", "kvmhooks.devices", "kvmhooks.host", "kvmhooks.isolate", "kvmhooks.live"),
    *("kvmhooks.placement", "kvmhooks.render", "kvmhooks.spec"),
)
"""All that a supervisor may need: the rooms below ``kvm_launch`` but for ``domain``."""

LEFT: Final = {
    *("kvm_launch.__main__", "kvm_launch.command"),
    *("kvmhooks.isolate.bundle", "kvmhooks.isolate.installation"),
}
"""Programs' beginnings, which change signals, and what only installs the hook."""


def preload() -> None:
    """Import every module of ``PACKAGES`` that is not loaded yet: some 60, in 0.1 s."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if module.name not in LEFT and module.name not in sys.modules:
                importlib.import_module(module.name)
