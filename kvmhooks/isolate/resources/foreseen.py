"""The answers that a host would give after writes of a rehearsal, which are not made.

No driver hesitates here, or refuses.
"""

from __future__ import annotations

from kvmhooks.isolate.resources import mdev
from kvmhooks.isolate.resources.vfio import DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmhooks.isolate.system.system import System

_SETTINGS: Final = ("mac", "vlan", "trust", "spoofchk", "rate")
_BEFORE: Final = "(before)"
"""The stand-in for a setting that a function had: only the card knows it."""


class Foreseen:
    """The host as far as one kind of resource changes it. None: it is as the host has it."""

    def __init__(self, system: System) -> None:
        self._system = system
        """The rehearsal's, with all that was written."""

    def write(self, path: str, text: str) -> None:
        """Have a write take its effect."""

    def read(self, path: str) -> str | None:
        """Return the text of a file."""

    def link(self, path: str) -> str | None:
        """Return the target of a link."""

    def has(self, path: str) -> bool | None:
        """Return whether something is there."""

    def names(self, path: str) -> list[str]:
        """Return what is in a folder besides."""
        del path
        return []

    def ask(self, words: list[str]) -> str | None:
        """Return the answer of `kvmhooks`, run with these words."""


class ForeseenDrivers(Foreseen):
    """Functions that go to another driver."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._drivers: dict[str, str] = {}

    def write(self, path: str, text: str) -> None:
        """Bind the function that is written to one of the bus's files."""
        *_, owner, name = path.split("/")
        if name == "drivers_probe":
            self._drivers[text] = self._system.read(f"{DEVICES}/{text}/driver_override")
        elif name in {"bind", "unbind"}:
            self._drivers[text] = owner if name == "bind" else ""

    def link(self, path: str) -> str | None:
        """Return the driver of a function that was bound or unbound."""
        *_, address, name = path.split("/")
        return self._drivers.get(address) if name == "driver" else None


class ForeseenMdevs(Foreseen):
    """Mediated devices that come and go."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._made: dict[str, tuple[str, str]] = {}
        """The parent and the type of each."""

    def write(self, path: str, text: str) -> None:
        """Make or remove a device."""
        parts = path.split("/")
        if path.startswith(mdev.PARENTS) and parts[-1] == "create":
            self._made[text] = parts[-4], parts[-2]
        elif path.startswith(mdev.DEVICES) and parts[-1] == "remove":
            del self._made[parts[-2]]

    def link(self, path: str) -> str | None:
        """Return where a device is, or its type."""
        *_, owner, name = path.split("/")
        if name in self._made:
            return f"../{self._made[name][0]}/{name}"
        return self._made[owner][1] if name == "mdev_type" and owner in self._made else None


class ForeseenPowers(Foreseen):
    """Functions that are set."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._settings: dict[tuple[str, str], dict[str, str]] = {}

    def ask(self, words: list[str]) -> str | None:
        """Set a function, or tell the settings of all of a card."""
        _, _, card, *wanted = words
        if wanted:
            number, *settings = wanted
            known = dict(word.split("=", 1) for word in settings)
            self._settings[card, number] = {**self._settings.get((card, number), {}), **known}
            return ""
        before = dict.fromkeys(_SETTINGS, _BEFORE)
        return "\n".join(
            " ".join([str(number), *(f"{name}={text}" for name, text in settings.items())])
            for number in range(int(self._system.read(f"{DEVICES}/{card}/sriov_numvfs")))
            for settings in [{**before, **self._settings.get((card, str(number)), {})}]
        )
