"""The powers of a card's virtual functions: addresses, VLANs, trust, spoof check and rates.

These are set through the physical function's network interface by rtnetlink (``IFLA_VF_*``,
linux/if_link.h), which is spoken by a helper, `kvmhooks vfs`: few VMs need it, and the hook
depends on no library. A function's settings are on record before the first write. Settings of
others since then stay.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.kinds.vf_powers import VfSettings, from_words, to_words
from kvmhooks.isolate.resources.resource import Devices
from kvmhooks.isolate.resources.sriov import COUNT, functions_of
from kvmhooks.isolate.resources.vfio import DEVICES, identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.kinds.vf_powers import VfSettingsDemand
    from kvmhooks.isolate.record.state import State
    from kvmhooks.isolate.resources.foreseen import ForeseenPowers
    from kvmhooks.isolate.resources.resource import Access, Means
    from kvmhooks.isolate.system.processes import StuckError
    from kvmhooks.isolate.system.system import System

VERB: Final = "functions"
"""The former name of `vfs`, which the kvmhooks of every version knows that may be installed."""
ANSWER_SECONDS: Final = 20.0
"""The time for one answer of it: on a host that has just been busy a program of Python's takes
seconds to begin. A start's own budget bounds it as well."""
_UP: Final = 0x1
"""``IFF_UP`` (linux/if.h)."""


class VfPowers(Devices):
    """Settings that virtual functions have to have."""

    KIND = VfSettings.KIND
    LABEL = "function"

    def own(self, system: System, claim: Claim) -> Sequence[str]:
        """Return the keys, and the addresses: whoever has a function has its settings."""
        keys = claim.asks_of(self.KIND)
        links = [system.link(f"{DEVICES}/{key.replace('/', '/virtfn')}") for key in keys]
        return *keys, *filter(None, (link.rpartition("/")[2] for link in links))

    def look(self, means: Means, claim: Claim, demand: VfSettingsDemand) -> dict[str, str]:
        """Return the settings of a function that can be set."""
        del claim
        card = f"{DEVICES}/{demand.pf}"
        if not means.system.has(card):
            raise IsolationError("found no such device, expected a card with virtual functions")
        if not means.system.has(f"{card}/{COUNT}"):
            raise IsolationError("found no SR-IOV, expected a physical function that has it")
        _check_up(means.system, demand.pf)
        known = _read(means, demand.key)
        lacking = [name for name in demand.settings if known.get(name, "-") == "-"]
        if lacking:
            raise IsolationError(f"its driver knows no {', '.join(lacking)} of a function")
        return known

    def note(
        self, system: System, state: State, demand: VfSettingsDemand, seen: dict[str, str]
    ) -> bool:
        """Put on record what a function has, and what it will have."""
        there = state.acquired(VfSettings)
        known = there.get(demand.key)
        was, ours = {name: seen[name] for name in demand.settings}, demand.settings
        identity = identity_of(system, demand.pf)
        if known is not None and known.identity == identity:
            self.check_waits(system, known, ": wait for it")
            left = {
                name: text
                for name, text in known.was.items()
                if known.made(name, seen.get(name, "-"))
            }
            was, ours = was | left, known.alternatives(left, ours)
        there[demand.key] = VfSettings(identity, was, ours)
        return True

    def make(self, means: Means, demand: VfSettingsDemand, seen: dict[str, str]) -> None:
        """Set a function, and read back what it has."""
        wanted = demand.settings
        changed = {name: text for name, text in wanted.items() if seen[name] != text}
        _write(means, demand.key, changed)
        now = _read(means, demand.key)
        wrong = [f"{name} is {now.get(name)}" for name in wanted if now.get(name) != wanted[name]]
        if wrong:
            raise IsolationError(
                f"found that {', '.join(wrong)} afterwards, expected {to_words(wanted)}"
            )

    def place(self, key: str) -> str:
        """Return the function's number and its card."""
        pf, _, number = key.partition("/")
        return f"the settings of function {number} of {pf} (kvmhooks vfs {pf})"

    def see(
        self, access: Access, key: str, found: VfSettings, demand: VfSettingsDemand | None
    ) -> tuple[str, str, str] | None:
        """Return its settings, of those that were set."""
        pf, _, number = key.partition("/")
        is_gone = int(number) >= len(functions_of(access.system, pf))
        if found.identity != identity_of(access.system, pf) or is_gone:
            return None
        now, wanted = _read(access, key), {} if demand is None else demand.settings
        return (
            to_words(found.was),
            to_words(found.was | wanted),
            to_words({name: now.get(name, "-") for name in (found.was | wanted)}),
        )

    def is_open(self, found: VfSettings) -> bool:
        """Return whether a hook has died while it set it: more than one value may stand there."""
        return any("|" in text for text in found.ours.values())

    def stuck(self, demand: VfSettingsDemand, error: StuckError) -> str:
        """Return the words for a helper that does not end."""
        del demand
        return str(error)

    def give_back(self, means: Means, key: str, found: VfSettings) -> str:
        """Set a function back, but for what others have set since."""
        pf, _, number = key.partition("/")
        system = means.system
        is_gone = int(number) >= len(functions_of(system, pf))
        if found.identity == identity_of(system, pf) and not is_gone:
            now = _read(means, key)
            back = {
                name: text
                for name, text in found.was.items()
                if text != now.get(name) and found.made(name, now.get(name, "-"))
            }
            _write(means, key, back)
        return ""

    def describe(self, found: VfSettings) -> str:
        """Return the settings that it had."""
        return to_words(found.was)

    def foresee(self, system: System) -> ForeseenPowers:
        """Return the settings as a rehearsal takes them."""
        from kvmhooks.isolate.resources.foreseen import ForeseenPowers  # noqa: PLC0415 -- none is a VM's start

        return ForeseenPowers(system)


RESOURCE: Final = VfPowers()


def _read(access: Access, place: str) -> dict[str, str]:
    """Return a function's settings, by name; ``-`` for one that its driver does not know."""
    pf, _, number = place.partition("/")
    for line in _ask(access, pf).split("\n"):
        head, _, rest = line.partition(" ")
        if head == number:
            return from_words(rest)
    raise IsolationError(f"found no function {number}, expected one of /{DEVICES}/{pf}")


def _write(means: Means, place: str, settings: dict[str, str]) -> None:
    """Set a function."""
    pf, _, number = place.partition("/")
    if settings:
        _ask(means, pf, number, *to_words(settings).split())


def _ask(access: Access, *words: str) -> str:
    if not access.helper:
        raise IsolationError(
            "functions are set by `kvmhooks vfs`, and there is no kvmhooks that nobody but "
            "root can change: install it so, then run `kvmhooks hooks install`"
        )
    return access.system.ask_program([*access.helper, VERB, *words], access.seconds(ANSWER_SECONDS))


def _check_up(system: System, pf: str) -> None:
    """Refuse a card that is down: it says that it has set a function, and does not.

    libvirt refuses it as well (``virNetDevSaveNetConfig()``, src/util/virnetdev.c).
    """
    for name in system.names(f"{DEVICES}/{pf}/net"):
        if not int(system.read(f"{DEVICES}/{pf}/net/{name}/flags"), 16) & _UP:
            raise IsolationError(
                f"found {name} down, expected it up, or its functions' settings are without "
                f"effect: run `ip link set {name} up`, and have it so from the host's start on"
            )
