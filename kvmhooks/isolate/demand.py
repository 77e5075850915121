"""How many virtual functions a card is to have: settled once, when its pool is made.

The administrator says it in ``kvmhooks.toml`` (``[sriov."0000:3b:00.0"] vfs = 8``). Otherwise it is
what all VMs need that are defined on this host, whether they run or not: a pool that was made for
the first of them could not grow for the next (``sriov_numvfs_store()``, drivers/pci/iov.c).

Definitions are libvirt's, with the policies in ``vm.d``, and those of ``kvm-launch@.service``. One
that cannot be read asks for nothing, which is logged: it keeps no other VM from starting.
"""

from __future__ import annotations

from kvmhooks.errors import KvmhooksError
from kvmhooks.isolate import configuration
from kvmhooks.isolate.domain import read_claim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.door import Door

LIBVIRTS: Final = "etc/libvirt/qemu"
LAUNCHED: Final = "etc/kvm-launch"

MOST: Final = 1_000
"""How many definitions of each kind are looked at."""


def configured(door: Door, pf: str) -> int | None:
    """What the administrator has said of a card. Raises ``IsolationError``."""
    said = configuration.functions(door)
    found = {count for name, count in said.items() if configuration.address_of(door, name) == pf}
    return max(found, default=None)


def known(door: Door, pf: str, but: str = "") -> int:
    """How many functions of a card the VMs need that are defined here, but for one by its name.

    The functions of libvirt's VMs have numbers; those that kvm-launch is yet to choose come on top.
    """
    highest, unnumbered = 0, 0
    for name, numbers, more in _needs(door, pf):
        if name != but:
            highest = max(highest, numbers)
            unnumbered += more
    return highest + unnumbered


def _needs(door: Door, pf: str) -> Iterator[tuple[str, int, int]]:
    """(name, the size of a pool with all numbers that it names, functions without a number)."""
    for path in _files(door, LIBVIRTS, ".xml"):
        text = _text(door, path)
        try:
            claim = read_claim(text, door=door) if text else None
        except KvmhooksError as error:
            _skip(door, path, str(error))
            continue
        if claim is not None:
            yield claim.name, dict(claim.pools).get(pf, 0), 0
    for path in _files(door, LAUNCHED, ".toml"):
        yield from _launched(door, path, pf)


def _launched(door: Door, path: str, pf: str) -> Iterator[tuple[str, int, int]]:
    """What a ``vm.toml`` asks for: read as far as this is concerned, and not checked."""
    import tomllib  # noqa: PLC0415 -- as long as the interpreter's start, and most hosts have none

    try:
        said = tomllib.loads(_text(door, path))
    except tomllib.TOMLDecodeError as error:
        _skip(door, path, str(error))
        return
    devices = said.get("pci")
    listed = devices if isinstance(devices, list) else []
    tables = [one.get("sriov") for one in listed if isinstance(one, dict)]
    of_card = [
        one
        for one in tables
        if isinstance(one, dict) and configuration.address_of(door, str(one.get("pf"))) == pf
    ]
    numbers = [one.get("vf") for one in of_card]
    pools = [one.get("pool") for one in of_card]
    named = [number + 1 for number in numbers if isinstance(number, int)]
    sizes = [size for size in pools if isinstance(size, int)]
    chosen_later = len(numbers) - len(named)
    yield str(said.get("name")), max([*named, *sizes], default=0), chosen_later


def _files(door: Door, directory: str, suffix: str) -> list[str]:
    names = [name for name in door.names(directory) if name.endswith(suffix)]
    if len(names) > MOST:
        _skip(door, directory, f"found {len(names)} definitions, expected {MOST} at most")
    return [f"{directory}/{name}" for name in names[:MOST]]


def _text(door: Door, path: str) -> str:
    try:
        return door.administrators(path) or ""
    except KvmhooksError as error:
        _skip(door, path, str(error))
        return ""


def _skip(door: Door, path: str, why: str) -> None:
    door.log(f"/{path}: not counted among those that need virtual functions: {why}", 4)
