"""Huge pages that a VM's memory is made of, and the pools that were made larger for VMs."""

from __future__ import annotations

from kvmhooks.isolate.kinds.kind import Acquisition, Demand, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Final


def _counts(fields: Any) -> dict[str, int]:
    return {str(key): int(count) for key, count in fields.items()}


def _node(value: Any) -> int:
    return value if type(value) is int and value == -1 else whole(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


class HugePageDemand(Demand):
    """Explicit huge pages of one size on one node."""

    __slots__ = ("count", "node", "size_kib")

    KIND = "hugepages"
    FIELDS: ClassVar = {"node": _node, "size_kib": whole, "count": whole}
    IS_DEVICE = False

    def __init__(self, node: int, size_kib: int, count: int) -> None:
        self.node = node
        """Node -1 is any node."""
        self.size_kib = size_kib
        """Size 0 is the host's default size."""
        self.count = count
        """The number of pages; of the host's default size the memory in KiB."""

    @property
    def key(self) -> str:
        """Its pool, as ``node/size in KiB``."""
        return f"{self.node}/{self.size_kib}"


class HugePagePool(Acquisition):
    """A pool of huge pages with a change under way, pages of ours, or some to give back later."""

    __slots__ = ("before", "owed", "shares", "want")

    KIND = "hugepages"
    FIELDS: ClassVar = {"owed": int, "shares": _counts, "before": _number, "want": _number}

    def __init__(
        self,
        owed: int = 0,
        shares: dict[str, int] | None = None,
        before: int | None = None,
        want: int | None = None,
    ) -> None:
        self.owed = owed
        """Pages that are the host's again."""
        self.shares = {} if shares is None else shares
        """Pages that were added for claims that are held, by the claims' keys."""
        self.before = before
        """The size before a change that may have been interrupted; None when none is under way."""
        self.want = want
        """The size that such a change is for."""
        self.waits = None  # the kernel is quick to take pages back

    @classmethod
    def check_key(cls, key: str) -> None:
        """Refuse what is no node and size. Raises ``ValueError``."""
        node, _, size = key.removeprefix("-").partition("/")
        if not (_is_number(node) and _is_number(size)):
            raise ValueError(f"{cls.KIND}: found {key!r}, expected a node and a size in KiB")

    @property
    def is_over(self) -> bool:
        """Nothing of it is ours."""
        return not (self.owed or self.shares or self.want is not None)

    def is_owed(self, *, is_asked: bool) -> bool:
        """Return whether pages are the host's again, or may be."""
        del is_asked  # its claims' own shares are apart
        return self.owed > 0 or self.want is not None


def _is_number(text: str) -> bool:
    return text.isdecimal() and str(int(text)) == text  # no leading zero


DEMAND: Final = HugePageDemand
ACQUISITION: Final = HugePagePool
