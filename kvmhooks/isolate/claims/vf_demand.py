"""The number of virtual functions of a card: settled once, when its pool is made.

The administrator says it in ``kvmhooks.toml`` (``[sriov."0000:3b:00.0"] vfs = 8``). Otherwise it is
what all VMs need that are defined on this host, whether they run or not: a pool that was made for
the first of them could not grow for the next (``sriov_numvfs_store()``, drivers/pci/iov.c).

Definitions are libvirt's, with the policies in ``vm.d``, and those of ``kvm-launch@.service``. One
that cannot be read asks for nothing, which is logged: it keeps no other VM from starting.
"""

from __future__ import annotations

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate.claims import administrator
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.kinds.vf_pools import VfPoolDemand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.claims.claim import Claim
    from kvmhooks.isolate.system.system import System

LIBVIRTS: Final = "etc/libvirt/qemu"
LAUNCHED: Final = "etc/kvm-launch"

MOST: Final = 1_000
"""The most definitions of each kind that are looked at."""


def configured(system: System, pf: str) -> int | None:
    """Return the administrator's number for a card. Raises ``IsolationError``."""
    counts = administrator.functions(system)
    found = {
        count for name, count in counts.items() if administrator.address_of(system, name) == pf
    }
    return max(found, default=None)


def known(system: System, pf: str, but: str = "") -> int:
    """Return how many functions of a card the VMs defined here need, but for one by its name.

    The functions of libvirt's VMs have numbers; those that kvm-launch is yet to choose come on top.
    """
    highest, unnumbered = 0, 0
    for name, numbers, more in _needs(system, pf):
        if name != but:
            highest = max(highest, numbers)
            unnumbered += more
    return highest + unnumbered


def _needs(system: System, pf: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, size of a pool with all numbers that it names, functions without a number)."""
    for path in _files(system, LIBVIRTS, ".xml"):
        text = _text(system, path)
        try:
            claim = read_claim(text, system=system) if text else None
        except KvmhooksError as error:
            _skip(system, path, str(error))
            continue
        if claim is not None:
            yield claim.name, _count_of(claim, pf), 0
    for path in _files(system, LAUNCHED, ".toml"):
        yield from _launched(system, path, pf)


def _count_of(claim: Claim, pf: str) -> int:
    counts = [pool.count for pool in claim.of(VfPoolDemand) if pool.pf == pf]
    return max(counts, default=0)


def _launched(system: System, path: str, pf: str) -> Iterator[tuple[str, int, int]]:
    """Yield the requests of a ``vm.toml``: read as far as this is concerned, and not checked."""
    import tomllib  # noqa: PLC0415 -- as long as the interpreter's start, and most hosts have none

    try:
        document = tomllib.loads(_text(system, path))
    except tomllib.TOMLDecodeError as error:
        _skip(system, path, str(error))
        return
    devices = document.get("pci")
    listed = devices if isinstance(devices, list) else []
    tables = [device.get("sriov") for device in listed if isinstance(device, dict)]
    of_card = [
        table
        for table in tables
        if isinstance(table, dict) and administrator.address_of(system, str(table.get("pf"))) == pf
    ]
    numbers = [table.get("vf") for table in of_card]
    pools = [table.get("pool") for table in of_card]
    named = [number + 1 for number in numbers if isinstance(number, int)]
    sizes = [size for size in pools if isinstance(size, int)]
    chosen_later = len(numbers) - len(named)
    yield str(document.get("name")), max([*named, *sizes], default=0), chosen_later


def _files(system: System, directory: str, suffix: str) -> list[str]:
    names = [name for name in system.names(directory) if name.endswith(suffix)]
    if len(names) > MOST:
        _skip(system, directory, f"found {len(names)} definitions, expected {MOST} at most")
    return [f"{directory}/{name}" for name in names[:MOST]]


def _text(system: System, path: str) -> str:
    try:
        return system.administrators(path) or ""
    except KvmhooksError as error:
        _skip(system, path, str(error))
        return ""


def _skip(system: System, path: str, why: str) -> None:
    system.log(f"/{path}: not counted among those that need virtual functions: {why}", 4)
