"""Used servers: guests that own CPUs have run there, one of libvirt and one of kvm-launch.

The traces that the kernel and systemd keep of the first are there then, so that a test of what is
left need not begin with a guest. It is one more layer on those of ``frozen``, made when a test
first asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import cache, frozen, isolated, launched
from .lab import Lab
from .machine import Machine

if TYPE_CHECKING:
    from pathlib import Path

    from .variants import Variant

CPUS = (6, 7)


def layers(variant: Variant) -> list[Path]:
    """The directories that such a server needs, the one to restore from first."""
    chain = frozen.layers(variant)
    names = ("used.py", "isolated.py", "launched.py", "guests.py")
    code = cache.digest(*(frozen.HERE / name for name in names))
    key = f"{variant.name}-{cache.key_of(chain[0].name, code)}"
    used = cache.entry("used", key, lambda into: _fill(variant, chain[0], into))
    cache.prune(used.parent, prefix=f"{variant.name}-", keep=frozen.KEEP)
    return [used, *chain]


def _fill(variant: Variant, base: Path, into: Path) -> None:
    boot = frozen.boot_of(variant)
    machine = Machine.restore(boot, frozen=base, directory=into / "run")
    frozen.freeze_after(machine, into, lambda _: _use(Lab(variant, machine)))


def _use(lab: Lab) -> None:
    isolated.start(lab, "first", CPUS)
    isolated.stop(lab, "first")
    launched.run_once(lab)
