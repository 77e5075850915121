"""What one VM asks of the host.

A claim is made from a plan (``kvmhooks.placement.claim``) or from the domain XML that libvirt
hands to the hook (``kvmhooks.isolate.domain``); for the XML that was rendered from a plan both are
equal.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError
from kvmhooks.isolate import policy
from kvmhooks.values import CpuSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Self

FORMAT: Final = 1

DEVICE_TABLES: Final = ("functions", "vfs", "vf_settings", "mdevs")
"""The tables of the record (``state``) with what was bound, made or set for VMs."""
"""The version of the JSON form. A package may be upgraded while VMs run."""

_UUID_WIDTHS: Final = [8, 4, 4, 4, 12]


class Claim:
    """What one VM asks of the host: a value, equal to another with the same content.

    Its key is (``driver``, ``uuid``); the name is a label.
    """

    __slots__ = (
        "bound",
        "caches",
        "devices",
        "disks",
        "driver",
        "exclusive",
        "hugepages",
        "name",
        "settings",
        "strict",
        "uuid",
    )

    driver: str
    """Who runs the VM: ``qemu`` under ``qemu:///system``, ``kvm-launch`` without libvirt."""
    uuid: str
    name: str
    exclusive: CpuSet
    """CPUs that nothing but this VM's vCPUs may use while it lives."""
    hugepages: tuple[tuple[int, int, int], ...]
    """(node, page size in KiB, count): explicit huge pages that its memory is made of.

    Node -1 is any node. Size 0 is the host's default size; the count is then the memory in KiB.
    """
    strict: bool
    """Whether the VM must not start when any part of the claim cannot be met."""
    settings: tuple[tuple[str, str], ...]
    """(name, value), in order: what differs from the defaults of ``kvmhooks.isolate.policy``."""
    disks: tuple[str, ...]
    """The block devices that ``storage`` settings are for; empty without such settings."""
    caches: tuple[tuple[int, str, int, int], ...]
    """(level, type, cache's id, KiB) of each part of a cache that libvirt gives it."""

    devices: tuple[str, ...]
    """PCI addresses of the devices that it is given, whose interrupts go to its CPUs."""
    bound: tuple[str, ...]
    """Those of them that are bound to ``vfio-pci`` for it, and to their own drivers afterwards."""

    def __init__(  # noqa: PLR0913 -- the fields of the value
        self,
        *,
        driver: str,
        uuid: str,
        name: str,
        exclusive: CpuSet,
        hugepages: tuple[tuple[int, int, int], ...] = (),
        strict: bool = False,
        settings: tuple[tuple[str, str], ...] = (),
        disks: tuple[str, ...] = (),
        caches: tuple[tuple[int, str, int, int], ...] = (),
        devices: tuple[str, ...] = (),
        bound: tuple[str, ...] = (),
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
        self.hugepages = hugepages
        self.strict = strict
        self.settings = settings
        self.disks = disks
        self.caches = caches
        self.devices = devices
        self.bound = bound

    @classmethod
    def from_json(cls, said: object) -> Self:
        """Read back what ``to_json`` wrote.

        Raises ``IsolationError`` for another format version or anything that is not a claim.
        """
        if not isinstance(said, dict):
            raise IsolationError(f"claim: found {type(said).__name__}, expected an object")
        if said.get("format") != FORMAT:
            raise IsolationError(
                f"claim: format: found {said.get('format')!r}, expected {FORMAT}; "
                "another version of kvmhooks wrote it"
            )
        try:
            return cls(
                driver=_text(said, "driver"),
                uuid=_text(said, "uuid"),
                name=_text(said, "name"),
                exclusive=CpuSet.parse(_text(said, "exclusive")),
                hugepages=tuple(
                    (int(entry["node"]), int(entry["size_kib"]), int(entry["count"]))
                    for entry in said["hugepages"]
                ),
                strict=said["strict"] is True,
                settings=tuple(sorted((str(k), str(v)) for k, v in said["settings"].items())),
                disks=tuple(str(disk) for disk in said["disks"]),
                caches=tuple(
                    (int(level), str(kind), int(cache), int(kib))
                    for level, kind, cache, kib in said.get("caches", ())
                ),
                devices=tuple(str(device) for device in said.get("devices", ())),
                bound=tuple(str(device) for device in said.get("bound", ())),
            )
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise IsolationError(f"claim: {type(error).__name__}: {error}") from error

    @property
    def key(self) -> str:
        """What tells this claim from others, and is safe as a file's name."""
        return f"{self.driver}-{self.uuid}"

    def setting(self, name: str) -> str:
        """What the policy says of ``name``; empty where the host stays as it is."""
        return policy.value_of(self.settings, name)

    @property
    def pools(self) -> tuple[tuple[str, int], ...]:
        """(physical function, how many virtual ones) of each pool that has to be there."""
        said = self.setting("devices.pools")
        pairs = (one.split("=") for one in said.split(",") if one)
        return tuple((address, int(count)) for address, count in pairs)

    @property
    def vf_settings(self) -> dict[str, dict[str, str]]:
        """What virtual functions are set to, by ``PF/NUMBER``."""
        found = {}
        for one in filter(None, self.setting("devices.functions").split(";")):
            place, *words = one.split(" ")
            found[place] = dict(word.split("=", 1) for word in words)
        return found

    @property
    def mdevs(self) -> tuple[tuple[str, str, str], ...]:
        """(UUID, parent, type) of each mediated device that has to be there."""
        said = self.setting("devices.mdevs")
        parts = (one.partition("=") for one in said.split(",") if one)
        return tuple((uuid, *where.split("/", 1)) for uuid, _, where in parts)  # type: ignore[misc]

    @property
    def has_devices(self) -> bool:
        """Whether anything is bound, made or set for it."""
        return any(self.asks_of(table) for table in DEVICE_TABLES)

    def asks_of(self, table: str) -> tuple[str, ...]:
        """What it asks for of one of ``DEVICE_TABLES``, by the keys there."""
        if table == "functions":
            return self.bound
        if table == "vfs":
            return tuple(pf for pf, _ in self.pools)
        if table == "vf_settings":
            return tuple(self.vf_settings)
        return tuple(uuid for uuid, _, _ in self.mdevs)

    def on(self, exclusive: CpuSet) -> Claim:
        """The same claim on other CPUs."""
        return self._but(exclusive, self.uuid)

    def by(self, uuid: str) -> Claim:
        """The same claim of another VM."""
        return self._but(self.exclusive, uuid)

    def given(self, devices: tuple[str, ...]) -> Claim:
        """The same claim of a VM that has other devices by now."""
        return self._but(self.exclusive, self.uuid, devices)

    def _but(self, exclusive: CpuSet, uuid: str, devices: tuple[str, ...] | None = None) -> Claim:
        return Claim(
            driver=self.driver, uuid=uuid, name=self.name, exclusive=exclusive,
            hugepages=self.hugepages, strict=self.strict, settings=self.settings,
            disks=self.disks, caches=self.caches, bound=self.bound,
            devices=self.devices if devices is None else devices,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The claim as JSON types, with the format's version."""
        return {
            "format": FORMAT,
            "driver": self.driver,
            "uuid": self.uuid,
            "name": self.name,
            "exclusive": str(self.exclusive),
            "hugepages": [
                {"node": node, "size_kib": size_kib, "count": count}
                for node, size_kib, count in self.hugepages
            ],
            "strict": self.strict,
            "settings": dict(self.settings),
            "disks": list(self.disks),
            "caches": [list(cache) for cache in self.caches],
            "devices": list(self.devices),
            "bound": list(self.bound),
        }

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Claim) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.driver, self.uuid))

    def __repr__(self) -> str:
        return f"Claim({self.to_json()!r})"


def _text(said: dict[str, object], key: str) -> str:
    value = said[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: found {value!r}, expected a text")
    return value
