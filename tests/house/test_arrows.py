"""Imports point one way, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BELOW = {
    "errors": set(),
    "version": set(),
    "wording": set(),
    "output": {"errors", "wording"},
    "exits": {"errors", "output"},
    "files": set(),
    "units": {"errors", "isolate"},
    "distribution": set(),
    "values": {"errors"},
    "isolate": {"errors", "values", "version"},
    "host": {"errors", "values", "version", "wording"},
    "devices": {"errors", "values", "wording", "host"},
    "spec": {"errors", "files", "values"},
    "placement": {"errors", "values", "wording", "isolate", "host", "devices", "spec"},
    "render": {"errors", "values", "wording", "isolate", "host", "spec", "placement"},
    "domain": {"errors", "values", "wording", "isolate", "host", "spec", "placement", "render"},
    "live": {
        *("errors", "values", "wording", "isolate", "host", "spec", "placement", "render"),
        *("distribution", "domain", "files"),
    },
}
"""Room: what it may import of kvmhooks, itself aside."""

EVERYTHING = {*BELOW, "cli"}
BELOW["cli"] = EVERYTHING - {"cli"}
BELOW["__main__"] = {"cli"}
BELOW["kvm_launch"] = EVERYTHING - {"cli"}
BELOW["hooks"] = {"isolate"}

STANDARD_ONLY = {
    "errors",
    "version",
    "wording",
    "output",
    "exits",
    "files",
    "distribution",
    "units",
    "values",
    "isolate",
    "hooks",
}
"""Rooms that import nothing but the standard library and what ``BELOW`` says."""


def sources() -> list[tuple[str, Path]]:
    """Each source file of the product with its room."""
    found = []
    for path in sorted((ROOT / "kvmhooks").rglob("*.py")):
        parts = path.relative_to(ROOT / "kvmhooks").with_suffix("").parts
        if parts != ("__init__",):
            found.append((parts[0], path))
    found += [("kvm_launch", path) for path in sorted((ROOT / "launcher/kvm_launch").glob("*.py"))]
    found += [("hooks", path) for path in sorted((ROOT / "hooks").glob("*")) if path.is_file()]
    return found


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at its top or anywhere else."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it points"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(
    ("room", "path"), sources(), ids=[str(path.relative_to(ROOT)) for _, path in sources()]
)
def test_imports_point_one_way(room: str, path: Path) -> None:
    """A module imports only its own room and the rooms below it."""
    allowed = {*BELOW[room], room}
    for name in sorted(imported(path)):
        top, _, rest = name.partition(".")
        if top == "kvmhooks":
            assert rest.partition(".")[0] in allowed, f"{name} is not below {room}"
        elif top == "kvm_launch":
            assert room == "kvm_launch", f"{name}: nothing imports the launcher"
        elif room in STANDARD_ONLY:
            assert top in sys.stdlib_module_names, f"{name} is not of the standard library"


def test_every_room_is_on_the_map() -> None:
    """A room that the map of the house does not know is none."""
    rooms = {room for room, _ in sources()}
    assert rooms <= BELOW.keys()
    page = (ROOT / "docs/architecture.md").read_text()
    for room in rooms - {"kvm_launch"}:
        assert f"`{room}/`" in page or f"`{room}.py`" in page, f"docs/architecture.md: {room}"


def test_importing_kvmhooks_loads_none_of_its_rooms() -> None:
    """``import kvmhooks`` costs nothing: no room, no attrs, lxml, libvirt or pyudev is loaded."""
    program = (
        "import sys; before = set(sys.modules); import kvmhooks; print(*set(sys.modules) - before)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    loaded = {name for name in said.split() if not name.startswith("importlib")}
    heavy = {"attr", "attrs", "cattrs", "lxml", "libvirt", "pyudev", "qemu"}
    assert "kvmhooks" in loaded
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("kvmhooks.")}
