"""What a card lets its virtual functions do: their addresses, VLANs, trust, spoof check and rates.

These are set through the physical function's network interface by rtnetlink (``IFLA_VF_*``,
linux/if_link.h), which is spoken by a helper, `kvmhooks functions`: few VMs need it, and the hook
depends on no library. What a function had is on record before the first write. What others set
meanwhile stays.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.functions import DEVICES, PATIENCE, conclude, identity_of, left
from kvmhooks.isolate.report import APPLIED, FAILED
from kvmhooks.isolate.sriov import functions_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmhooks.isolate.claim import Claim
    from kvmhooks.isolate.door import Door
    from kvmhooks.isolate.functions import Entry
    from kvmhooks.isolate.report import Report
    from kvmhooks.isolate.store import Store

VERB: Final = "functions"
_UP: Final = 0x1
"""``IFF_UP`` (linux/if.h)."""


def take(
    door: Door, store: Store, entry: Entry, claim: Claim, helper: Sequence[str], until: float
) -> None:
    """Set what a claim says of its functions, before ``until`` on the door's clock.

    Raises ``IsolationError``; ``settle`` then takes back what was set.
    """
    for place, wanted in claim.vf_settings.items():
        try:
            _set(door, store, entry, place, wanted, _Helper(door, helper, until))
        except (IsolationError, OSError) as error:
            raise IsolationError(f"{claim.name}: {place}: {error}") from error


class _Helper:
    """`kvmhooks functions`, and until when it may run."""

    __slots__ = ("_door", "_until", "_words")

    def __init__(self, door: Door, words: Sequence[str], until: float) -> None:
        self._door, self._words, self._until = door, words, until

    def read(self, place: str) -> dict[str, str]:
        """What a function is set to, by name; ``-`` for what its driver does not know."""
        pf, _, number = place.partition("/")
        for line in self._ask(pf).split("\n"):
            head, _, rest = line.partition(" ")
            if head == number:
                return _parsed(rest)
        raise IsolationError(f"found no function {number}, expected one of /{DEVICES}/{pf}")

    def write(self, place: str, settings: dict[str, str]) -> None:
        """Set a function."""
        pf, _, number = place.partition("/")
        if settings:
            self._ask(pf, number, *_said(settings).split())

    def _ask(self, *words: str) -> str:
        if not self._words:
            raise IsolationError(
                "functions are set by `kvmhooks functions`, and there is no kvmhooks that nobody "
                "but root can change: install it so, then run `kvmhooks hooks install`"
            )
        seconds = min(PATIENCE, left(self._door, self._until))
        return self._door.ask_program([*self._words, VERB, *words], seconds)


def _set(
    door: Door, store: Store, entry: Entry, place: str, wanted: dict[str, str], helper: _Helper
) -> None:
    pf = place.partition("/")[0]
    _check_up(door, pf)
    identity = identity_of(door, pf)
    known = helper.read(place)
    lacking = [name for name in wanted if known.get(name, "-") == "-"]
    if lacking:
        raise IsolationError(f"its driver knows no {', '.join(lacking)} of a function")
    with entry() as state:
        record = state.vf_settings.get(place)
        was = {name: known[name] for name in wanted}
        if record is not None and record["identity"] == identity:
            was |= _parsed(record["was"])
        state.vf_settings[place] = {
            "identity": identity, "was": _said(was), "set": _said(wanted),
        }  # fmt: skip
        store.save(state.to_text())
    helper.write(place, {name: text for name, text in wanted.items() if known[name] != text})
    now = helper.read(place)
    wrong = [f"{name} is {now.get(name)}" for name in wanted if now.get(name) != wanted[name]]
    if wrong:
        raise IsolationError(f"found that {', '.join(wrong)} afterwards, expected {_said(wanted)}")


def _check_up(door: Door, pf: str) -> None:
    """Refuse a card that is down: it says that it has set a function, and does not.

    libvirt refuses it as well (``virNetDevSaveNetConfig()``, src/util/virnetdev.c).
    """
    for name in door.names(f"{DEVICES}/{pf}/net"):
        if not int(door.read(f"{DEVICES}/{pf}/net/{name}/flags"), 16) & _UP:
            raise IsolationError(
                f"found {name} down, expected it up, or what is set of its functions is without "
                f"effect: run `ip link set {name} up`, and have it so from the host's start on"
            )


def settle(door: Door, store: Store, entry: Entry, report: Report, helper: Sequence[str]) -> None:
    """Give back every setting that is owed; ``report`` tells what came of each function."""
    with entry() as state:
        todo = {place: state.vf_settings[place] for place in state.owed("vf_settings")}
    done = []
    for place, record in todo.items():
        try:
            until = door.now() + 2 * PATIENCE
            _give_back(door, place, record, _Helper(door, helper, until))
        except (IsolationError, OSError) as error:
            report.add(f"function/{place}", FAILED, record["was"], str(error))
        else:
            report.add(f"function/{place}", APPLIED, record["was"])
            done.append(place)
    conclude(store, entry, "vf_settings", done, {})


def _give_back(door: Door, place: str, record: dict[str, str], helper: _Helper) -> None:
    pf, _, number = place.partition("/")
    if record["identity"] != identity_of(door, pf) or int(number) >= len(functions_of(door, pf)):
        return  # the function is gone, and what it was set to
    was, ours, now = _parsed(record["was"]), _parsed(record["set"]), helper.read(place)
    back = {
        name: text
        for name, text in was.items()
        if text != now.get(name) and now.get(name) == ours.get(name, now.get(name))
    }
    helper.write(place, back)


def _said(settings: dict[str, str]) -> str:
    return " ".join(f"{name}={text}" for name, text in settings.items())


def _parsed(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split() if "=" in word)
