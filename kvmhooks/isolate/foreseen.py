"""Virtual functions that a rehearsal has made: where the kernel would put them, and as what.

Their addresses follow from the card's own (``sriov_offset`` and ``sriov_stride`` of
Documentation/ABI/testing/sysfs-bus-pci, ``pci_iov_virtfn_bus()``, drivers/pci/iov.c). Each is in a
group of its own, which a host without ACS would not give it, and where the card is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmhooks.isolate.functions import DEVICES
from kvmhooks.values import PciAddress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmhooks.isolate.door import Door

_AS_THE_CARD = ("class", "local_cpulist", "numa_node")


class Foreseen:
    """The functions that a rehearsed write of ``sriov_numvfs`` makes or removes."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._made: dict[str, list[str]] = {}
        """The functions by their card."""

    def make(self, card: str, count: int) -> None:
        """Have a card make functions, as if it had none. Raises ``OSError`` or ``ValueError``."""
        self._made[card] = list(self._addresses(card, count))

    def card_of(self, path: str) -> str:
        """The card of the function that a path is about; empty where it is about none."""
        function = self.function_of(path)
        cards = (card for card, functions in self._made.items() if function in functions)
        return next(cards, "")

    def function_of(self, path: str) -> str:
        """The function below whose folder a path is."""
        return path.removeprefix(f"{DEVICES}/").partition("/")[0]

    def names(self, path: str) -> list[str]:
        """What a folder has of them: a card its links, the bus their folders, a group itself."""
        if path == DEVICES:
            return [function for functions in self._made.values() for function in functions]
        if self.card_of(path):
            alone = path.endswith("/iommu_group/devices")
            return [self.function_of(path)] if alone else []
        made = self._made.get(path.removeprefix(f"{DEVICES}/"), [])
        return [f"virtfn{number}" for number in range(len(made))]

    def link(self, path: str) -> str:
        """Where a link leads; empty for one that there is not."""
        folder, _, name = path.rpartition("/")
        if self.card_of(path):
            own = f"../../kernel/iommu_groups/of-{self.function_of(path)}"
            return own if name == "iommu_group" else ""
        number = name.removeprefix("virtfn")
        functions = self._made.get(self.function_of(folder), [])
        is_ours = name.startswith("virtfn") and number.isdecimal() and int(number) < len(functions)
        return f"../{functions[int(number)]}" if is_ours else ""

    def read(self, path: str) -> str:
        """What a file of a function says. Raises ``FileNotFoundError``."""
        card, name = self.card_of(path), path.rpartition("/")[2]
        if name == "driver_override":
            return "(null)"
        if name not in _AS_THE_CARD:
            raise FileNotFoundError(2, "only the kernel knows it", path)
        return self._door.read(f"{DEVICES}/{card}/{name}")

    def _addresses(self, card: str, count: int) -> Iterator[str]:
        offset, stride = (
            int(self._door.read(f"{DEVICES}/{card}/{name}"))
            for name in ("sriov_offset", "sriov_stride")
        )
        address = PciAddress.parse(card)
        for number in range(count):
            yield str(address.further(offset + stride * number))
