"""The programs that run a VM, and the verdict on KVM: always in the same words.

``/dev/kvm`` that opens is not enough (``kvmhooks.kvm.probe``), so it counts whether somebody has
tried. Only a start tries; every other command tells what a start has left, or that nobody has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, frozen

from kvmhooks.errors import PlanError
from kvmhooks.machine.target import OLDEST, Target

if TYPE_CHECKING:
    from kvmhooks.host.model import Host

Accel = Literal["kvm", "tcg"]
Evidence = Literal["not told", "works", "fails", "not tried", "assumed"]

NOT_TRIED: Final = "KVM was not tried"
"""The words of every command where no start has left a verdict."""

_WORDS: Final[dict[Evidence, str]] = {
    "not told": "KVM: /dev/kvm works on this host",
    "works": "KVM was tried here and works",
    "fails": "KVM was tried here and does not work",
    "not tried": f"{NOT_TRIED}: /dev/kvm is there",
    "assumed": "KVM is assumed to work",
}

_ABSENT: Final = "this host has no working /dev/kvm"


@frozen(kw_only=True)
class Hypervisor:
    """A QEMU, the libvirt that runs it if any, and what is known of KVM under it."""

    target: Target = OLDEST
    kvm: Evidence = "not told"
    reason: str = ""
    """The outcome of the trial of KVM."""

    def words_on(self, host: Host) -> str:
        """Return the verdict on KVM of a host, as every command says it."""
        if not self._has_kvm(host):
            return _ABSENT
        return f"{_WORDS[self.kvm]}: {self.reason}" if self.reason else _WORDS[self.kvm]

    def _has_kvm(self, host: Host) -> bool:
        return has_kvm(host) or self.kvm == "assumed"

    def on(self, target: Target) -> Hypervisor:
        """Return the same verdict on another target."""
        return evolve(self, target=target)

    def accelerator(self, asked: Literal["auto", "kvm", "tcg"], host: Host) -> tuple[Accel, str]:
        """Return the accelerator of a VM that asks for ``asked``, and why; empty as it asked.

        Raises ``PlanError`` for KVM where there is none.
        """
        is_there = self._has_kvm(host)
        if asked == "kvm" and not is_there:
            raise PlanError("machine.accel", '"kvm"', 'a host whose /dev/kvm works, or "tcg"')
        if asked != "auto":
            return asked, ""
        if not is_there or self.kvm == "fails":
            return "tcg", f"TCG, QEMU's own emulation: {self.words_on(host)}"
        return "kvm", self.words_on(host)


def has_kvm(host: Host) -> bool:
    """Return whether a host has a ``/dev/kvm`` that opens."""
    return host.kvm is not None and host.kvm.available is True
