"""irqbalance: told over its socket which CPUs to leave alone.

The daemon listens on ``/run/irqbalance/irqbalancePID.sock`` and takes one request a connection:
``setup`` answers with its interval and the hex mask of banned CPUs, ``settings cpus LIST`` bans a
list (``NULL``: none of ours), which it takes up at its next scan (``sock_handle()``, irqbalance.c,
and ``setup_banned_cpus()``, cputree.c, of irqbalance 1.9). Where it does not run, there is
nothing to tell. A ban is merged with what others have banned, and a restart forgets it: the next
entry bans again.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.isolate.knob import FIRST, Knob
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.knob import View

_DIRECTORY: Final = "run/irqbalance"
_TIMEOUT: Final = 2.0

_MAX_REQUEST: Final = 499
"""The daemon reads a request into 500 bytes."""


def knobs(door: Door) -> Iterator[Knob]:
    """One for a daemon that runs."""
    for name in door.names(_DIRECTORY):
        pid = name.removeprefix("irqbalance").removesuffix(".sock")
        is_its = pid.isascii() and pid.isdigit() and name == f"irqbalance{pid}.sock"
        if is_its and door.is_socket(f"{_DIRECTORY}/{name}"):
            yield _Bans(f"{_DIRECTORY}/{name}")


class _Bans(Knob):
    """The banned CPUs."""

    __slots__ = ("path",)

    is_slow = True

    def __init__(self, path: str) -> None:
        super().__init__("irqbalance", FIRST)
        self.path = path

    def identity(self, door: Door) -> str:  # noqa: ARG002 -- the base's
        """The daemon's socket, which has its pid: a restarted one has forgotten our bans."""
        return self.path

    def read(self, door: Door) -> str:
        said = door.ask(self.path, "setup", _TIMEOUT)
        words = said.partition("BANNED ")[2].split()
        if not words:
            raise ValueFormatError(said[:80], "irqbalance's BANNED mask")
        return str(CpuSet.parse_mask(words[0]))

    def write(self, door: Door, value: str) -> None:
        request = f"settings cpus {value or 'NULL'}"
        if len(request) > _MAX_REQUEST:
            raise ValueFormatError(request[:80], f"at most {_MAX_REQUEST} bytes for irqbalance")
        door.ask(self.path, request, _TIMEOUT)

    def target(self, original: str, view: View) -> str:
        return str(CpuSet.parse(original) | view.taken("isolation.irqs"))
