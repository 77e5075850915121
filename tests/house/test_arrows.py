"""Imports point one way, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

BELOW = {
    "errors": set(),
    "version": set(),
    "wording": set(),
    "output": {"errors", "wording"},
    "exits": {"errors", "output"},
    "files": set(),
    "bounded": set(),
    "closed": set(),
    "signals": set(),
    "units": {"errors", "isolate"},
    "distribution": set(),
    "cpu_lists": {"errors"},
    "values": {"cpu_lists", "errors"},
    "isolate": {"errors", "values", "version"},
    "host": {"errors", "values", "wording"},
    "devices": {"distribution", "errors", "values", "host"},
    "spec": {"errors", "files", "values"},
    "inventory": {"errors", "values", "isolate", "host", "machine"},
    "machine": {"errors", "values", "wording", "host", "spec"},
    "placement": {
        *("errors", "values", "wording", "isolate", "host", "devices", "spec"),
        *("inventory", "machine"),
    },
    "qemu": {
        *("bounded", "closed", "errors", "files", "signals", "values", "wording"),
        *("spec", "machine", "placement"),
    },
    "libvirt": {
        *("distribution", "errors", "values", "wording"),
        *("isolate", "host", "spec", "inventory", "machine", "placement"),
    },
    "kvm": {"errors", "files", "signals", "machine", "qemu"},
    "live": {"kvm"},  # names for supervisors of a92f6b5
    "survey": {
        *("errors", "files", "values", "isolate", "host", "spec", "inventory", "machine"),
        *("placement", "qemu", "libvirt", "kvm"),
    },
    "show": {"values", "wording", "host", "inventory", "placement", "qemu", "libvirt"},
}
"""Room: what it may import of kvmhooks, itself aside."""

EVERYTHING = {*BELOW, "cli"}
BELOW["cli"] = EVERYTHING - {"cli"}
BELOW["__main__"] = {"cli"}
BELOW["kvm_launch"] = EVERYTHING - {"cli"}
BELOW["hooks"] = {"isolate"}

WINGS = {
    "isolate": (
        {"mediated", "sriov", "vf_settings"},  # names for supervisors of a92f6b5
        {"system"},
        {"kinds"},
        {"claims"},
        {"record"},
        {"vm", "engine"},
        {"knobs", "resources"},
        {"registry"},
        {"hook"},
    ),
    "host": (
        {"files", "frequency"},
        {"resources"},
        {"bus", "system"},
        {"model"},
        {"cpu", "contract", "features", "nesting"},
        {"read", "picture"},
        {"capture", "drawing"},
    ),
    "placement": (
        {"launchers", "model", "profile"},
        {"request", "pci_selection", "cache_ways"},
        {"search"},
        {"pins", "emulator", "cells", "device_nodes"},
        {"reasons"},
        {"refusal"},
        {"plan"},
        {"claim", "contract", "own_place", "planned_usage", "slots", "replan"},
        {"together"},
    ),
    "qemu": (
        {"emulator", "events", "passed_files", "questions", "shapes", "sockets", "unix"},
        {"argv", "capabilities", "guest_report", "passed_images", "qmp", "run_dir", "threads"},
    ),
    "libvirt": (
        {"edit", "xml"},
        {"importing", "capabilities", "connection"},
        {"tuning", "definitions", "repin"},
    ),
    "kvm_launch": (
        {"child", "options"},  # a program for older supervisors; what a command line said
        {"tell"},
        {"host"},
        {"prepare", "talk"},
        {"spawn"},
        {"life"},
        {"many"},
        {"commands"},
        {"command"},
        {"__main__"},
    ),
}
"""Room with wings: those and the modules beside them, in layers from the lowest.

None imports another one of its own layer.
"""

STANDARD_ONLY = {
    "errors",
    "version",
    "wording",
    "output",
    "exits",
    "files",
    "bounded",
    "closed",
    "signals",
    "distribution",
    "units",
    "cpu_lists",
    "values",
    "isolate",
    "hooks",
}
"""Rooms that import nothing but the standard library and what ``BELOW`` says."""

DEVICES = "kvmhooks.machine.devices."

BY_NAME = {"spec"}
"""Rooms that know the small devices by their names, and their classes for the type checker alone.
"""

MOST_MODULES = 20
"""A package with more is a heap, but for ``cli``: there a module is a verb."""


@cache
def sources() -> list[tuple[str, Path]]:
    """Each source file of the product with its room."""
    found = []
    for path in sorted((ROOT / "kvmhooks").rglob("*.py")):
        parts = path.relative_to(ROOT / "kvmhooks").with_suffix("").parts
        if parts != ("__init__",):
            found.append((parts[0], path))
    found += [("kvm_launch", path) for path in sorted((ROOT / "launcher/kvm_launch").rglob("*.py"))]
    found += [("hooks", path) for path in sorted((ROOT / "hooks").glob("*")) if path.is_file()]
    return found


def wing_of(path: Path) -> str:
    """The wing that a file is in, or the module that it is beside the wings."""
    launcher = ROOT / "launcher"
    top = launcher if path.is_relative_to(launcher) else ROOT / "kvmhooks"
    return path.relative_to(top).with_suffix("").parts[1]


class Imports(NamedTuple):
    """The modules that a file imports, at its top or anywhere else."""

    every: frozenset[str]
    but_types: frozenset[str]
    """Without those that are for the type checker alone."""
    loaded: frozenset[tuple[str, str]]
    """Those that are imported as soon as it is, types' aside: each with what is taken of it."""


@cache
def imports_of(path: Path) -> Imports:
    """Read a file, once for all tests here."""
    tree = ast.parse(path.read_bytes())
    return Imports(
        frozenset(names_in(tree, path, but_types=False)),
        frozenset(names_in(tree, path, but_types=True)),
        frozenset(loaded_in(tree)),
    )


def names_in(tree: ast.Module, path: Path, *, but_types: bool) -> Iterator[str]:
    """Yield each module that is imported, with the name that is taken of it."""
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (but_types and is_for_types):
            nodes += filter(has_statements, ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def has_statements(node: ast.AST) -> bool:
    """Return whether a node is a statement or has some: an expression imports nothing."""
    return isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case))


def loaded_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each module that is imported with the file, and what is taken of it, if anything."""
    bodies: list[list[ast.stmt]] = [tree.body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                bodies.append(node.orelse)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((str(node.module), alias.name) for alias in node.names)
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parts = ("body", "orelse", "finalbody", "handlers")
                bodies += [getattr(node, part, []) for part in parts]


@pytest.mark.parametrize(
    ("room", "path"), sources(), ids=[str(path.relative_to(ROOT)) for _, path in sources()]
)
def test_imports_point_one_way(room: str, path: Path) -> None:
    """A module imports only its own room and the rooms below it."""
    allowed = {*BELOW[room], room}
    every = imports_of(path).every
    of_devices = {name for name in every if name.startswith(DEVICES)}
    for name in sorted(every - (of_devices if room in BY_NAME else set())):
        top, _, rest = name.partition(".")
        if top == "kvmhooks":
            assert rest.partition(".")[0] in allowed, f"{name} is not below {room}"
        elif top == "kvm_launch":
            assert room == "kvm_launch", f"{name}: nothing imports the launcher"
        elif room in STANDARD_ONLY:
            assert top in sys.stdlib_module_names, f"{name} is not of the standard library"


@pytest.mark.parametrize(
    ("room", "path"), sources(), ids=[str(path.relative_to(ROOT)) for _, path in sources()]
)
def test_a_device_is_loaded_by_its_name_alone(room: str, path: Path) -> None:
    """No module imports a small device, which its VM may not have, but for the type checker."""
    if not path.is_relative_to(ROOT / "kvmhooks/machine/devices"):
        loaded = {name for name in imports_of(path).but_types if name.startswith(DEVICES)}
        every = {name for name in loaded if not name.startswith(f"{DEVICES}device.")}
        assert not every
        assert room not in BY_NAME or not loaded


@pytest.mark.parametrize(
    ("room", "path"),
    [(room, path) for room, path in sources() if room in WINGS and wing_of(path) != "__init__"],
    ids=lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else "",
)
def test_wings_import_one_way(room: str, path: Path) -> None:
    """Within a room a wing imports itself and the layers below it, never the room as a whole."""
    own = wing_of(path)
    layers = WINGS[room]
    height = next((at for at, layer in enumerate(layers) if own in layer), None)
    assert height is not None, f"{own} has no place in {room}"
    allowed = {own}.union(*layers[:height])
    prefix = "kvm_launch." if room == "kvm_launch" else f"kvmhooks.{room}."
    for name in sorted(imports_of(path).every):
        if name.startswith(prefix):
            wing = name.removeprefix(prefix).partition(".")[0]
            assert wing in allowed, f"{name} is not below {room}/{own}"


def test_every_room_is_on_the_map() -> None:
    """A room or wing that the map of the house does not know is none."""
    rooms = {room for room, _ in sources()}
    assert rooms <= BELOW.keys()
    page = (ROOT / "docs/architecture.md").read_text()
    for room in rooms - {"kvm_launch"}:
        assert f"`{room}/`" in page or f"`{room}.py`" in page, f"docs/architecture.md: {room}"
    for room, path in sources():
        if room in WINGS and path.name == "__init__.py" and wing_of(path) != "__init__":
            assert f"`{wing_of(path)}/`" in page, f"docs/architecture.md: {room}/{wing_of(path)}"


def test_the_map_says_what_a_room_may_import() -> None:
    """The page's table is the one that is tested."""
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)(?:/|\.py)` \| .* \| (.*) \|$", page)
    rooms = {room: {*re.findall(r"`(\w+)`", names)} for room, names in rows if room in BELOW}
    expected = {**BELOW, "cli": set[str]()}  # «all of the above»
    del expected["kvm_launch"]  # «all but `cli`»
    assert rooms == expected


def test_the_map_has_no_room_that_is_gone() -> None:
    """Nothing of the tables above is left over from a module that is gone."""
    assert {room for room, _ in sources()} == BELOW.keys()
    for room, layers in WINGS.items():
        listed = Counter(wing for layer in layers for wing in layer)
        there = {wing_of(path) for name, path in sources() if name == room} - {"__init__"}
        assert listed == Counter(there), room


def test_no_package_is_a_heap() -> None:
    """Of a package's modules a reader has the names at one glance."""
    counts = Counter(path.parent for _, path in sources() if path.name != "__init__.py")
    heaps = {str(folder.relative_to(ROOT)) for folder, n in counts.items() if n > MOST_MODULES}
    assert heaps <= {"kvmhooks/cli"}


MOST_CHAINED = 15
"""The modules in the longest chain of imports, of which each loads the next before itself."""


def loaded(path: Path, modules: Collection[str]) -> set[str]:
    """Those of the modules that a file imports as soon as it is imported, types' aside."""
    names = {
        full if (full := f"{module}.{name}") in modules else module
        for module, name in imports_of(path).loaded
    }
    return names & set(modules)


def test_no_chain_of_imports_is_long() -> None:
    """A reader of its first module has not more than these to read before it.

    A module for types alone (``TYPE_CHECKING``) or of one case (imported where that is) is in no
    chain.
    """
    files = {module_of(path): path for _, path in sources() if path.suffix == ".py"}
    below = {name: loaded(path, files) - {name} for name, path in files.items()}
    chains: dict[str, list[str]] = {}

    def chain_of(name: str) -> list[str]:
        if name not in chains:
            chains[name] = [name, *max(map(chain_of, sorted(below[name])), key=len, default=[])]
        return chains[name]

    longest = max(map(chain_of, files), key=len)
    assert len(longest) <= MOST_CHAINED, " > ".join(longest)
    assert len(longest) > MOST_CHAINED // 2, "no import is seen"


def module_of(path: Path) -> str:
    """The name by which a file is imported."""
    top = ROOT / "launcher" if path.is_relative_to(ROOT / "launcher") else ROOT
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_only_commands_know_the_command_line() -> None:
    """All below them are given values with names and types, never a namespace of a parser."""
    knowing = {
        str(path.relative_to(ROOT).parent)
        for _, path in sources()
        if any(name.partition(".")[0] == "argparse" for name in imports_of(path).every)
    }
    assert knowing == {"kvmhooks/cli", "launcher/kvm_launch/commands"}


def test_importing_kvmhooks_loads_none_of_its_rooms() -> None:
    """``import kvmhooks`` costs nothing: no room, no attrs, lxml, libvirt or pyudev is loaded."""
    program = (
        "import sys; before = set(sys.modules); import kvmhooks; print(*set(sys.modules) - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    loaded = {name for name in output.split() if not name.startswith("importlib")}
    heavy = {"attr", "attrs", "cattrs", "lxml", "libvirt", "pyudev", "qemu"}
    assert "kvmhooks" in loaded
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("kvmhooks.")}
