"""The demands of one VM on the host.

A claim is made from a plan (``kvmhooks.placement.claim``) or from the domain XML that libvirt
hands to the hook (``kvmhooks.isolate.claims.domain_xml``); for the XML that was rendered from a
plan both are equal.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate.kinds.kind import KINDS, whole
from kvmhooks.policy import SETTINGS, check, value_of
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final, Self, TypeVar

    from kvmhooks.isolate.kinds.kind import Demand

    D = TypeVar("D", bound=Demand)
    T = TypeVar("T")

FORMAT: Final = 2
"""The version of the JSON form. A package may be upgraded while VMs run: 1 is read, too."""

_UUID_WIDTHS: Final = [8, 4, 4, 4, 12]


class Claim:
    """The demands of one VM on the host: a value, equal to another with the same content.

    Its key is (``driver``, ``uuid``); the name is a label.
    """

    __slots__ = (
        "caches",
        "demands",
        "devices",
        "disks",
        "driver",
        "exclusive",
        "name",
        "origins",
        "settings",
        "strict",
        "uuid",
    )

    driver: str
    """The VM's driver: ``qemu`` under ``qemu:///system``, ``kvm-launch`` without libvirt."""
    uuid: str
    name: str
    exclusive: CpuSet
    """CPUs that nothing but this VM's vCPUs may use while it lives."""
    strict: bool
    """The VM must not start when any part of the claim cannot be met."""
    settings: tuple[tuple[str, str], ...]
    """(name, value), in order: those unlike the defaults of ``kvmhooks.policy``."""
    origins: tuple[tuple[str, str], ...]
    """(name, file) of the settings that the administrator's files say, in order; all others are the
    VM's own."""
    disks: tuple[str, ...]
    """The block devices that ``storage`` settings are for; empty without such settings."""
    caches: tuple[tuple[int, str, int, int], ...]
    """(level, type, cache's id, KiB) of each part of a cache that libvirt gives it."""

    devices: tuple[str, ...]
    """PCI addresses of the devices that it is given, whose interrupts go to its CPUs."""
    demands: dict[str, tuple[Demand, ...]]
    """The resources that are acquired for it, by their kinds in the order of ``KINDS``."""

    def __init__(  # noqa: PLR0913 -- the fields of the value
        self,
        *,
        driver: str,
        uuid: str,
        name: str,
        exclusive: CpuSet,
        strict: bool = False,
        settings: tuple[tuple[str, str], ...] = (),
        disks: tuple[str, ...] = (),
        caches: tuple[tuple[int, str, int, int], ...] = (),
        devices: tuple[str, ...] = (),
        demands: Iterable[Demand] = (),
        origins: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Take the fields. Raises ``IsolationError`` for a UUID that is none."""
        groups = uuid.split("-")
        has_shape = [len(group) for group in groups] == _UUID_WIDTHS
        if not has_shape or "".join(groups).strip("0123456789abcdef"):
            raise IsolationError(f"claim: uuid: found {uuid[:40]!r}, expected a lower-case UUID")
        self.driver = driver
        self.uuid = uuid
        self.name = name
        self.exclusive = exclusive
        self.strict = strict
        self.settings = settings
        self.origins = origins
        self.disks = disks
        self.caches = caches
        self.devices = devices
        found: dict[str, list[Demand]] = {}
        for demand in demands:
            found.setdefault(demand.KIND, []).append(demand)
        self.demands = {kind: tuple(found[kind]) for kind in KINDS if kind in found}

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Read back what ``to_json`` wrote.

        Raises ``IsolationError`` for another format version or anything that is not a claim.
        """
        if not isinstance(document, dict):
            raise IsolationError(f"claim: found {type(document).__name__}, expected an object")
        version = document.get("format")
        if type(version) is not int or version not in (1, FORMAT):
            raise IsolationError(
                f"claim: format: found {version!r}, expected 1 or {FORMAT}; another version of "
                "kvmhooks wrote it"
            )
        try:
            if version == 1:
                from kvmhooks.isolate.claims import format_1  # noqa: PLC0415 -- after an upgrade

                document = format_1.upgraded(document)
            resources = _one_of(document, "resources", dict)
            return cls(
                driver=_one_of(document, "driver", str),
                uuid=_one_of(document, "uuid", str),
                name=_one_of(document, "name", str),
                exclusive=CpuSet.parse(_one_of(document, "exclusive", str)),
                strict=_one_of(document, "strict", bool),
                settings=tuple(sorted((str(k), str(v)) for k, v in document["settings"].items())),
                origins=tuple(
                    sorted((str(k), str(v)) for k, v in document.get("origins", {}).items())
                ),
                disks=tuple(str(disk) for disk in _one_of(document, "disks", list)),
                caches=tuple(
                    (whole(level), str(kind), whole(cache), whole(kib))
                    for level, kind, cache, kib in _one_of(document, "caches", list, [])
                ),
                devices=tuple(str(device) for device in _one_of(document, "devices", list, [])),
                demands=[
                    demand
                    for kind in resources
                    for demand in map(KINDS[kind].demand.from_json, _one_of(resources, kind, list))
                ],
            )
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise IsolationError(f"claim: {type(error).__name__}: {error}") from error

    @classmethod
    def from_file(cls, document: object) -> Self:
        """Read a claim that a person hands in: ``from_json``, and what its VM could ask for.

        A claim on record is one that was admitted, maybe by a version that took more. Raises
        ``IsolationError``.
        """
        from kvmhooks.isolate.claims import format_1  # noqa: PLC0415 -- no hook reads files

        claim = cls.from_json(document)
        known: Any = document
        apart = {"devices.allow", *(kind.setting for kind in KINDS.values())} - {""}
        for name in sorted(apart & dict(claim.settings).keys()):
            raise IsolationError(f"claim: settings: found {name}, expected it under resources")
        if known["format"] != 1:
            known = format_1.downgraded(claim.to_json())
        texts = {str(name): str(text) for name, text in known["settings"].items()}
        check(texts, "claim")
        return claim

    @property
    def key(self) -> str:
        """The text that tells this claim from others, and is safe as a file's name."""
        return f"{self.driver}-{self.uuid}"

    def setting(self, name: str) -> str:
        """Return the policy's value of ``name``; empty where the host stays as it is."""
        return value_of(self.settings, name)

    def of(self, kind: type[D]) -> tuple[D, ...]:
        """Return the demands of one kind, by the class of them."""
        return self.demands.get(kind.KIND, ())  # type: ignore[return-value]

    @property
    def has_devices(self) -> bool:
        """Something is bound, made or set for it."""
        return any(several[0].IS_DEVICE for several in self.demands.values())

    @property
    def has_settings(self) -> bool:
        """Something of the host is set for it that needs no CPUs of its own."""
        return any(SETTINGS[name].is_for_any for name, _ in self.settings)

    @property
    def has_thread_settings(self) -> bool:
        """Something is set of QEMU's threads, once they are there."""
        return any(
            name.startswith("threads.") and SETTINGS[name].is_for_any for name, _ in self.settings
        )

    def asks_of(self, kind: str) -> tuple[str, ...]:
        """Return its demands of one kind by their keys on record."""
        return tuple(demand.key for demand in self.demands.get(kind, ()))

    def on(self, exclusive: CpuSet) -> Claim:
        """Return the same claim on other CPUs."""
        return self._but(exclusive, self.uuid)

    def by(self, uuid: str) -> Claim:
        """Return the same claim of another VM."""
        return self._but(self.exclusive, uuid)

    def given(self, devices: tuple[str, ...]) -> Claim:
        """Return the same claim of a VM that has other devices by now."""
        return self._but(self.exclusive, self.uuid, devices)

    def _but(self, exclusive: CpuSet, uuid: str, devices: tuple[str, ...] | None = None) -> Claim:
        return Claim(
            driver=self.driver, uuid=uuid, name=self.name, exclusive=exclusive,
            strict=self.strict, settings=self.settings, disks=self.disks, caches=self.caches,
            demands=[demand for several in self.demands.values() for demand in several],
            devices=self.devices if devices is None else devices, origins=self.origins,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return the claim as JSON types, with the format's version."""
        return {
            "format": FORMAT,
            "driver": self.driver,
            "uuid": self.uuid,
            "name": self.name,
            "exclusive": str(self.exclusive),
            "strict": self.strict,
            "settings": dict(self.settings),
            "disks": list(self.disks),
            "caches": [list(cache) for cache in self.caches],
            "devices": list(self.devices),
            "resources": {
                kind: [demand.to_json() for demand in several]
                for kind, several in self.demands.items()
            },
            **({"origins": dict(self.origins)} if self.origins else {}),
        }

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Claim) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.driver, self.uuid))

    def __repr__(self) -> str:
        return f"Claim({self.to_json()!r})"


_KINDS: Final = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


def _one_of(document: dict[str, Any], key: str, kind: type[T], default: T | None = None) -> T:
    """Return a value of one kind of JSON's; one that is not there is the default, if any."""
    value = document[key] if default is None else document.get(key, default)
    if not isinstance(value, kind):
        raise TypeError(f"{key}: found {value!r}, expected {_KINDS[kind]}")
    return value
