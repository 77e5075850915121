"""Settings of virtual functions: those that a VM asks for, and those that were there before."""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import Acquisition, Demand, process, texts, whole, word

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import ClassVar, Final, Self

    from kvmhooks.isolate.system.process_stat import Process


class VfSettingsDemand(Demand):
    """The settings that a virtual function has to have."""

    __slots__ = ("number", "pf", "settings")

    KIND = "vf_settings"
    FIELDS: ClassVar = {"pf": word, "number": whole, "settings": texts}

    def __init__(self, pf: str, number: int, settings: Mapping[str, str]) -> None:
        self.pf = pf
        """The address of the physical function."""
        self.number = number
        self.settings = dict(settings)
        """By their names in the metadata: ``mac``, ``vlan``, …."""

    @property
    def key(self) -> str:
        """The function, as ``PF/NUMBER``."""
        return f"{self.pf}/{self.number}"

    @classmethod
    def of_setting(cls, text: str) -> tuple[Self, ...]:
        """Return the demands in ``0000:3b:00.0/1 vlan=5 trust=yes;…``. Raises ``ValueError``."""
        found: dict[str, Self] = {}
        for line in filter(None, text.split(";")):
            place, *words = line.split(" ")
            pf, _, number = place.partition("/")
            found[place] = cls(pf, int(number), dict(word.split("=", 1) for word in words))
        return tuple(found.values())

    def to_setting(self) -> str:
        """Return its part of that."""
        return " ".join(filter(None, (self.key, to_words(self.settings))))

    @classmethod
    def joined(cls, parts: list[str]) -> str:
        """Return the attribute of several."""
        return ";".join(parts)


class VfSettings(Acquisition):
    """The settings of a virtual function before it was set for a VM, and what it was set to."""

    __slots__ = ("identity", "ours", "was")

    KIND = "vf_settings"
    FIELDS: ClassVar = {"identity": str, "was": texts, "ours": texts, "waits": process}

    def __init__(
        self,
        identity: str,
        was: Mapping[str, str],
        ours: Mapping[str, str],
        waits: Process | None = None,
    ) -> None:
        self.identity = identity
        """The mark of the physical function, which a later one at the same address has not."""
        self.was = dict(was)
        self.ours = dict(ours)
        """The values that it is or may be set to; several, of which a hook that died has made one,
        are parted by ``|``."""
        self.waits = waits

    @classmethod
    def check_key(cls, key: str) -> None:
        """Refuse what is no card and number. Raises ``ValueError``."""
        pf, _, number = key.partition("/")
        if not (pf and number.isascii() and number.isdecimal()):
            raise ValueError(f"{cls.KIND}: found {key!r}, expected a card and a number")

    def made(self, name: str, text: str) -> bool:
        """Return whether a setting is one that we made, or may have made."""
        return text in self.ours.get(name, text).split("|")

    def alternatives(self, left: Iterable[str], wanted: Mapping[str, str]) -> dict[str, str]:
        """Return the wanted settings, each beside ours that is ``left`` and may stay."""
        values = {name: self.ours[name].split("|") for name in left if name in self.ours}
        for name, text in wanted.items():
            values[name] = [*values.get(name, ()), text]
        return {name: "|".join(dict.fromkeys(texts)) for name, texts in values.items()}


def to_words(settings: Mapping[str, str]) -> str:
    """Return settings as `kvmhooks vfs` and the metadata have them, ``vlan=5 trust=yes``."""
    return " ".join(f"{name}={text}" for name, text in settings.items())


def from_words(text: str) -> dict[str, str]:
    """Return the settings in that, by their names."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


DEMAND: Final = VfSettingsDemand
ACQUISITION: Final = VfSettings
