"""The order of the lab's tests: who measures first, then what takes longest.

Each worker is given one unit after another, in the order of collection (xdist's ``loadgroup``,
without its own reordering): the tests of a shared server are one unit, any other test is a unit by
itself. So no server is shared by starting it twice, and no worker is left with a long test at the
end.

``seconds.json`` has the seconds of each test on two cores; of those only the proportions matter. A
run with ``--regen`` writes the ones that it took. A test that is not there counts as a long one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KNOWN: Final = Path(__file__).with_name("seconds.json")

DISTRIBUTION: Final = ("--dist", "loadgroup", "--no-loadscope-reorder")

UNKNOWN_SECONDS: Final = 180.0

SHARED: Final = "shared_lab"
"""The fixture that is one server for a module."""


def share(item: pytest.Item) -> None:
    """Keep the tests of one shared server on one worker."""
    server = server_of(item)
    if server and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group(server))


def server_of(item: pytest.Item) -> str:
    """Return the name of the server that a test shares with others of its module; none has ''."""
    if SHARED not in getattr(item, "fixturenames", ()):
        return ""
    callspec = getattr(item, "callspec", None)
    variant = callspec.params.get("variant", "") if callspec else ""
    return f"{item.path.stem}-{variant}"


def sort(items: list[pytest.Item], known: Mapping[str, float]) -> None:
    """Put those that measure first, then unit after unit, the longest first."""
    unit_of = {item: server_of(item) or item.nodeid for item in items}
    seconds: dict[str, float] = {}
    for item, unit in unit_of.items():
        seconds[unit] = seconds.get(unit, 0) + known.get(name_of(item.nodeid), UNKNOWN_SECONDS)
    place = {unit: number for number, unit in enumerate(seconds)}

    def rank(item: pytest.Item) -> tuple[bool, float, int]:
        unit = unit_of[item]
        return item.get_closest_marker("alone") is None, -seconds[unit], place[unit]

    items.sort(key=rank)


def name_of(nodeid: str) -> str:
    """Return a test's name in ``seconds.json``: without its folder, and without its server's."""
    file, _, test = nodeid.partition("::")
    name, _, server = test.rpartition("@")
    return f"{Path(file).name}::{name if name and ']' not in server else test}"


def read() -> dict[str, float]:
    """Return the seconds of each test that is known."""
    known: dict[str, float] = json.loads(KNOWN.read_text())
    return known


def write(taken: Iterable[tuple[str, float]]) -> None:
    """Replace the seconds of the tests that a run has taken; others stay."""
    known = read() | {name_of(nodeid): round(seconds) for nodeid, seconds in taken}
    KNOWN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
