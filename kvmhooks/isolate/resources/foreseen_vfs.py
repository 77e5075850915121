"""Virtual functions that a rehearsal has made: where the kernel would put them, and as what.

Their addresses follow from the card's own (``sriov_offset`` and ``sriov_stride`` of
Documentation/ABI/testing/sysfs-bus-pci, ``pci_iov_virtfn_bus()``, drivers/pci/iov.c). Each is in a
group of its own, which a host without ACS would not give it, and where the card is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmhooks.isolate.resources.foreseen import Foreseen
from kvmhooks.isolate.resources.sriov import COUNT
from kvmhooks.isolate.resources.vfio import DEVICES
from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.system.system import System

_AS_THE_CARD = ("class", "local_cpulist", "numa_node")


class ForeseenVfs(Foreseen):
    """The functions that a rehearsed write of ``sriov_numvfs`` makes or removes."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._made: dict[str, list[str]] = {}
        """The functions by their card."""

    def write(self, path: str, text: str) -> None:
        """Have a card make functions, as if it had none. Raises ``OSError`` or ``ValueError``."""
        *_, card, name = path.split("/")
        if name == COUNT:
            self._made[card] = list(self._addresses(card, int(text)))

    def has(self, path: str) -> bool | None:
        """Return whether there is something of a function."""
        if not self._card_of(path):
            return None
        alone = self._function_of(path) == path.rpartition("/")[2]
        return alone or bool(self._system.link(path)) or bool(self.names(path))

    def _card_of(self, path: str) -> str:
        """Return the card of the function that a path is about; empty where it is about none."""
        function = self._function_of(path)
        cards = (card for card, functions in self._made.items() if function in functions)
        return next(cards, "")

    def _function_of(self, path: str) -> str:
        """Return the function below whose folder a path is."""
        return path.removeprefix(f"{DEVICES}/").partition("/")[0]

    def names(self, path: str) -> list[str]:
        """Return a folder's share of them: a card's links, the bus's folders, a group itself."""
        if path == DEVICES:
            return [function for functions in self._made.values() for function in functions]
        if self._card_of(path):
            alone = path.endswith("/iommu_group/devices")
            return [self._function_of(path)] if alone else []
        made = self._made.get(path.removeprefix(f"{DEVICES}/"), [])
        return [f"virtfn{number}" for number in range(len(made))]

    def link(self, path: str) -> str | None:
        """Return the target of a link of a function, or to one."""
        folder, _, name = path.rpartition("/")
        if self._card_of(path):
            own = f"../../kernel/iommu_groups/of-{self._function_of(path)}"
            return own if name == "iommu_group" else None
        number = name.removeprefix("virtfn")
        functions = self._made.get(self._function_of(folder), [])
        is_ours = name.startswith("virtfn") and number.isdecimal() and int(number) < len(functions)
        return f"../{functions[int(number)]}" if is_ours else None

    def read(self, path: str) -> str | None:
        """Return the text of a function's file. Raises ``FileNotFoundError``."""
        card, name = self._card_of(path), path.rpartition("/")[2]
        if not card:
            return None
        if name == "driver_override":
            return "(null)"
        if name not in _AS_THE_CARD:
            raise FileNotFoundError(2, "only the kernel knows it", path)
        return self._system.read(f"{DEVICES}/{card}/{name}")

    def _addresses(self, card: str, count: int) -> Iterator[str]:
        offset, stride = (
            int(self._system.read(f"{DEVICES}/{card}/{name}"))
            for name in ("sriov_offset", "sriov_stride")
        )
        address = PciAddress.parse(card)
        for number in range(count):
            yield str(address.further(offset + stride * number))
