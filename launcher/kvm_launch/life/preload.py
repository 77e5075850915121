"""The late imports, loaded while their files are those of this version.

A VM may run for months, and its package be upgraded under it: what its supervisor imported after
that would be another version's. Modules that are loaded stay as they are.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Final

PACKAGES: Final = (
    *("kvm_launch", "kvmhooks.devices", "kvmhooks.host", "kvmhooks.inventory", "kvmhooks.isolate"),
    *("kvmhooks.kvm", "kvmhooks.libvirt", "kvmhooks.machine", "kvmhooks.placement"),
    *("kvmhooks.qemu", "kvmhooks.show", "kvmhooks.spec", "kvmhooks.survey"),
)
"""All that a supervisor may need: the rooms below ``kvm_launch``."""

LEFT: Final = {
    *("kvm_launch.__main__", "kvm_launch.command"),
    *("kvmhooks.isolate.hook.__main__", "kvmhooks.isolate.hook.bundle"),
    "kvmhooks.isolate.hook.installation",
}
"""Programs' beginnings, which change signals, and what only installs the hook."""

EXISTING: Final = ("kvmhooks.libvirt.edit", "kvmhooks.libvirt.importing", "kvmhooks.libvirt.tuning")
"""The wings for a domain that is there already: kvm-launch reads and tunes none."""


def preload() -> None:
    """Import every module of ``PACKAGES`` that is not loaded yet: some 60, in 0.1 s."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            is_left = module.name in LEFT or module.name.startswith(EXISTING)
            if not is_left and module.name not in sys.modules:
                importlib.import_module(module.name)
