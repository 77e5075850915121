"""The table of the kinds, and what their values have in common.

A kind has two values. A *demand* is what a claim asks for; a claim has any number of them. An
*acquisition* is on record from before the first write until the host has everything back. Each is
JSON, and read back from it. A module here has both, one in ``resources`` acts on them; neither is
loaded before something of the kind is there: most VMs have no devices, and libvirt waits.
"""

from __future__ import annotations

from kvmhooks.isolate.system.process_stat import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, ClassVar, Final, Self


class ResourceKind:
    """One kind: its name in claims and on record, and where to find what it is."""

    __slots__ = ("_module", "name", "resource", "setting")

    def __init__(self, name: str, module: str, resource: str, setting: str = "") -> None:
        self.name = name
        self._module = module
        self.resource = resource
        """The module of ``resources`` that acts on it."""
        self.setting = setting
        """The setting that asks for it (``kvmhooks.policy``); empty for none."""

    @property
    def demand(self) -> type[Demand]:
        """The class of what claims ask for."""
        found: type[Demand] = self._load().DEMAND
        return found

    @property
    def acquisition(self) -> type[Acquisition]:
        """The class of what is on record."""
        found: type[Acquisition] = self._load().ACQUISITION
        return found

    def _load(self) -> Any:
        return __import__(f"kvmhooks.isolate.kinds.{self._module}", fromlist=["DEMAND"])


KINDS: Final[dict[str, ResourceKind]] = {
    kind.name: kind
    for kind in (
        ResourceKind("hugepages", "hugepage_pools", "hugepages"),
        ResourceKind("vfs", "vf_pools", "sriov", "devices.pools"),
        ResourceKind("vf_settings", "vf_powers", "vf_config", "devices.functions"),
        ResourceKind("functions", "bound_functions", "vfio"),
        ResourceKind("mdevs", "mdevs", "mdev", "devices.mdevs"),
    )
}
"""All kinds, in the order in which they are acquired; they are given back in the opposite one."""


class Fields:
    """A value of named fields that JSON knows, equal to another with the same."""

    __slots__ = ()

    FIELDS: ClassVar[Mapping[str, Callable[[Any], Any]]]
    """Each field, and the function that makes it of JSON types."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {name: _plain(getattr(self, name)) for name in self.FIELDS}

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Read back what ``to_json`` wrote. Raises ``ValueError`` and its kin."""
        if document.keys() != cls.FIELDS.keys():
            raise ValueError(f"found {sorted(document)}, expected {sorted(cls.FIELDS)}")
        return cls(**{name: _read(document, name, make) for name, make in cls.FIELDS.items()})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_json()!r})"


class Demand(Fields):
    """One thing that a claim asks for."""

    __slots__ = ()

    KIND: ClassVar[str]
    IS_DEVICE: ClassVar[bool] = True
    """It is bound, made or set for the VM alone."""

    @property
    def key(self) -> str:
        """The key on record of what is acquired for it."""
        raise NotImplementedError

    @classmethod
    def of_setting(cls, text: str) -> tuple[Self, ...]:
        """Return the demands of the kind's attribute of the metadata. Raises ``ValueError``."""
        raise NotImplementedError

    def to_setting(self) -> str:
        """Return its part of that attribute."""
        raise NotImplementedError

    @classmethod
    def joined(cls, parts: list[str]) -> str:
        """Return the attribute of several demands, of their parts."""
        return ",".join(parts)


class Acquisition(Fields):
    """The record of one thing that was taken, made or set, or is about to be."""

    __slots__ = ("waits",)

    KIND: ClassVar[str]

    waits: Process | None
    """The process that has to end before it can be given back."""

    @classmethod
    def check_key(cls, key: str) -> None:
        """Refuse what is no key on record. Raises ``ValueError``."""
        if not key or "/" in key:
            raise ValueError(f"{cls.KIND}: found {key!r}, expected a name without a slash")

    def is_owed(self, *, is_asked: bool) -> bool:
        """Return whether something of it is the host's again; ``is_asked``: a claim asks for it."""
        return not is_asked


def from_settings(settings: dict[str, str]) -> Iterator[Demand]:
    """Take the demands out of a VM's settings. Raises ``ValueError`` for a text that is none."""
    for kind in KINDS.values():
        if kind.setting and kind.setting in settings:
            yield from kind.demand.of_setting(settings.pop(kind.setting))


def to_settings(demands: Mapping[str, tuple[Demand, ...]]) -> dict[str, str]:
    """Return the attributes of the metadata that ask for these demands, by their kinds."""
    found = {}
    for name, several in demands.items():
        if KINDS[name].setting and several:
            parts = [demand.to_setting() for demand in several]
            found[KINDS[name].setting] = type(several[0]).joined(parts)
    return found


def process(fields: Any) -> Process | None:
    """Return the process that was put on record, if any. Raises ``ValueError`` and its kin."""
    return None if fields is None else Process(*map(int, fields))


def whole(value: Any) -> int:
    """Return a whole number from 0 on. Raises ``ValueError`` for anything else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"found {value!r}, expected a whole number from 0 on")
    return value


def word(value: Any) -> str:
    """Return a text. Raises ``ValueError`` for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"found {value!r}, expected a text")  # noqa: TRY004 -- as whole
    return value


def texts(fields: Any) -> dict[str, str]:
    """Return texts by their names. Raises ``ValueError`` and its kin."""
    return {str(name): str(text) for name, text in fields.items()}


def _read(document: Any, name: str, make: Callable[[Any], Any]) -> Any:
    try:
        return make(document[name])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Process):
        return [value.pid, value.start]
    return list(value) if isinstance(value, tuple) else value
