"""The CPUs that systemd's unit files say, where there is no systemd to ask: a captured host.

The directories, which file of two has the say, and drop-ins are those of systemd.unit(5) («Unit
File Load Path»), ``CPUAffinity=`` and ``NUMAMask=`` those of systemd.exec(5). Specifiers are not
resolved, and of a template its own file alone is read.
"""

from __future__ import annotations

from kvmhooks.errors import ValueFormatError
from kvmhooks.values import CpuSet, union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from kvmhooks.isolate.system.system import System

PLACES: Final = (
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "etc/systemd/system.attached",
    "run/systemd/system",
    "run/systemd/system.attached",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
)
"""The directories of unit files, the first with the say."""

KINDS: Final = {"service": "Service", "socket": "Socket", "mount": "Mount", "swap": "Swap"}
"""The units that run programs, by the end of their names, and the section that says how, which is
the name of their D-Bus interface as well."""

_MOST: Final = 10_000
"""Files that are read at the most."""

_NODES: Final = "sys/devices/system/node"


def affinities(system: System) -> tuple[dict[str, CpuSet], bool]:
    """Return the units with ``CPUAffinity=``, and whether all were looked at."""
    names = {place: system.names(place) for place in PLACES}
    units: dict[str, str] = {}
    for place, there in names.items():
        for name in there:
            if name.rpartition(".")[2] in KINDS and not _is_alias(system, place, name):
                units.setdefault(name, f"{place}/{name}")
    found: dict[str, CpuSet] = {}
    left = _MOST
    for unit, path in sorted(units.items()):
        paths = [path, *_drop_ins(system, unit, names)]
        left -= len(paths)
        if left < 0:
            return found, False
        cpus = _settled(system, [*_settings(system, unit, paths)])
        if cpus:
            found[unit] = cpus
    return found, True


def _is_alias(system: System, place: str, name: str) -> bool:
    """Return whether a name is a link to a unit of another name."""
    target = system.link(f"{place}/{name}").rpartition("/")[2]
    return target not in {"", name, "null"}


def _drop_ins(system: System, unit: str, names: dict[str, list[str]]) -> list[str]:
    """Return the drop-ins of a unit, in the order in which they are read."""
    found: dict[str, str] = {}
    for owner in _owners(unit):
        folder = f"{owner}.d"
        for place, there in names.items():
            if folder in there:
                for name in system.names(f"{place}/{folder}"):
                    if name.endswith(".conf"):
                        found.setdefault(name, f"{place}/{folder}/{name}")
    return [found[name] for name in sorted(found)]


def _owners(unit: str) -> Iterator[str]:
    """Yield the names whose drop-ins a unit has, the nearest first."""
    yield unit
    name, _, kind = unit.rpartition(".")
    prefix, at, instance = name.partition("@")
    if at and instance:
        yield f"{prefix}@.{kind}"
    for end in range(len(prefix) - 1, 0, -1):
        if prefix[end - 1] == "-":
            yield f"{prefix[:end]}.{kind}"
    yield kind


def _settings(system: System, unit: str, paths: list[str]) -> Iterator[tuple[str, str]]:
    """Yield what a unit's files set in the section that says how it runs."""
    wanted = f"[{KINDS[unit.rpartition('.')[2]]}]"
    for path in paths:
        try:
            text = system.read(path)
        except OSError:  # it is masked, or has gone
            continue
        if "CPUAffinity" not in text and "NUMAMask" not in text:
            continue
        section = ""
        for line in text.replace("\\\n", " ").split("\n"):
            stripped = line.strip()
            if stripped.startswith("["):
                section = stripped
            elif section == wanted and not stripped.startswith(("#", ";")):
                key, _, value = stripped.partition("=")
                yield key.strip(), value.strip()


def _settled(system: System, settings: list[tuple[str, str]]) -> CpuSet:
    """Return the CPUs that settings come to: an empty one forgets what was said before."""
    cpus, nodes, is_numa = CpuSet(), CpuSet(), False
    for key, value in settings:
        if key == "NUMAMask":
            nodes = nodes | _listed(value, _all_nodes(system)) if value else CpuSet()
        elif key == "CPUAffinity":
            is_numa = value == "numa"
            cpus = cpus | _listed(value) if value and not is_numa else CpuSet()
    return union(_cpus_of(system, node) for node in nodes) if is_numa else cpus


def _listed(value: str, every: CpuSet | None = None) -> CpuSet:
    """Return a set of numbers and ranges between blanks or commas; none for what is no such set."""
    if value == "all" and every is not None:
        return every
    try:
        return CpuSet.parse_words(value.strip('"'))
    except ValueFormatError:  # systemd leaves such a line out
        return CpuSet()


def _all_nodes(system: System) -> CpuSet:
    names = (name.removeprefix("node") for name in system.names(_NODES) if name.startswith("node"))
    return CpuSet(int(name) for name in names if name.isascii() and name.isdigit())


def _cpus_of(system: System, node: int) -> CpuSet:
    try:
        return CpuSet.parse(system.read(f"{_NODES}/node{node}/cpulist"))
    except (OSError, ValueFormatError):
        return CpuSet()
