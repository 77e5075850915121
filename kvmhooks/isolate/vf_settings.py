"""What a card lets its virtual functions do: their addresses, VLANs, trust, spoof check and rates.

These are set through the physical function's network interface by rtnetlink (``IFLA_VF_*``,
linux/if_link.h), which is spoken by a helper, `kvmhooks functions`: few VMs need it, and the hook
depends on no library. What a function had is on record before the first write. What others set
meanwhile stays.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.functions import DEVICES, PATIENCE, identity_of
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
    from kvmhooks.isolate.state import State
    from kvmhooks.isolate.store import Store

VERB: Final = "functions"


def take(door: Door, store: Store, entry: Entry, claim: Claim, helper: Sequence[str]) -> None:
    """Set what a claim says of its functions.

    Raises ``IsolationError``; ``settle`` then takes back what was set.
    """
    for place, wanted in claim.vf_settings.items():
        try:
            _set(door, store, entry, place, wanted, helper)
        except (IsolationError, OSError) as error:
            raise IsolationError(f"{claim.name}: {place}: {error}") from error


def _set(
    door: Door,
    store: Store,
    entry: Entry,
    place: str,
    wanted: dict[str, str],
    helper: Sequence[str],
) -> None:
    pf = place.partition("/")[0]
    identity = identity_of(door, pf)
    known = _read(door, place, helper)
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
    _write(
        door, place, {name: text for name, text in wanted.items() if known[name] != text}, helper
    )
    now = _read(door, place, helper)
    wrong = [f"{name} is {now.get(name)}" for name in wanted if now.get(name) != wanted[name]]
    if wrong:
        raise IsolationError(f"found that {', '.join(wrong)} afterwards, expected {_said(wanted)}")


def owed(state: State) -> list[str]:
    """The functions whose settings no claim asks for any more."""
    asked = {place for one in state.held.values() for place in one.claim.vf_settings}
    return [place for place in state.vf_settings if place not in asked]


def settle(door: Door, store: Store, entry: Entry, report: Report, helper: Sequence[str]) -> None:
    """Give back every setting that is owed; ``report`` tells what came of each function."""
    with entry() as state:
        todo = {place: state.vf_settings[place] for place in owed(state)}
    done = []
    for place, record in todo.items():
        try:
            _give_back(door, place, record, helper)
        except (IsolationError, OSError) as error:
            report.add(f"function/{place}", FAILED, record["was"], str(error))
        else:
            report.add(f"function/{place}", APPLIED, record["was"])
            done.append(place)
    if not done:
        return
    with entry() as state:
        for place in done:
            state.vf_settings.pop(place, None)
        if state.is_empty:
            store.clear()
        else:
            store.save(state.to_text())


def _give_back(door: Door, place: str, record: dict[str, str], helper: Sequence[str]) -> None:
    pf, _, number = place.partition("/")
    if record["identity"] != identity_of(door, pf) or int(number) >= len(functions_of(door, pf)):
        return  # the function is gone, and what it was set to
    was, ours, now = _parsed(record["was"]), _parsed(record["set"]), _read(door, place, helper)
    back = {
        name: text
        for name, text in was.items()
        if text != now.get(name) and now.get(name) == ours.get(name, now.get(name))
    }
    _write(door, place, back, helper)


def _read(door: Door, place: str, helper: Sequence[str]) -> dict[str, str]:
    """What a function is set to, by name; ``-`` for what its driver does not know."""
    pf, _, number = place.partition("/")
    for line in door.ask_program(_words(helper, pf), PATIENCE).splitlines():
        head, _, rest = line.partition(" ")
        if head == number:
            return _parsed(rest)
    raise IsolationError(f"found no function {number}, expected one of /{DEVICES}/{pf}")


def _write(door: Door, place: str, settings: dict[str, str], helper: Sequence[str]) -> None:
    pf, _, number = place.partition("/")
    if settings:
        words = [*_words(helper, pf), number, *_said(settings).split()]
        door.ask_program(words, PATIENCE)


def _words(helper: Sequence[str], pf: str) -> list[str]:
    if not helper:
        raise IsolationError(
            "functions are set by `kvmhooks functions`, and there is no kvmhooks that nobody but "
            "root can change: install it so, then run `kvmhooks hooks install`"
        )
    return [*helper, VERB, pf]


def _said(settings: dict[str, str]) -> str:
    return " ".join(f"{name}={text}" for name, text in settings.items())


def _parsed(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split() if "=" in word)
