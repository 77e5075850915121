"""Wheel and sdist: the same bytes from everyone, and installed by pip, pipx and uv."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Final

import pytest

from kvmhooks.distribution import EXTRAS, PAGES
from tests.tools.export import export

ROOT: Final = Path(__file__).parents[2]

BASE: Final = {"attrs", "cattrs", "lxml", "pyudev", "rich"}
"""All that is installed without an extra, with what these need. What one room needs is an extra."""

LARGEST: Final = 25_000_000
"""Bytes of an installation without extras, and without the bytecode that pip adds to it."""


def run(*words: object, **more: str) -> str:
    """Run a program with ``more`` in its environment; return what it printed."""
    done = subprocess.run(
        [str(word) for word in words], env={**os.environ, **more}, cwd="/", check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tool(name: str) -> Path:
    """A developer's tool, of this environment or else the machine's."""
    here = Path(sys.executable).parent / name
    found = here if here.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"found no {name}: pip install '.[dev]'")
    return Path(found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with wheel and sdist, built from two checkouts that differ in all but content."""
    folders = []
    for number, umask in enumerate((0o022, 0o077)):
        base = tmp_path_factory.mktemp(f"checkout-{number}")
        before = os.umask(umask)
        try:
            source = export(base / ("kvmhooks" * (number + 1)))
            for path in source.rglob("*"):
                os.utime(path, (10**9 * number, 10**9 * number), follow_symlinks=False)
                if path.is_file() and not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~umask)
            run(sys.executable, "-m", "build", "--outdir", base / "dist", source,
                SOURCE_DATE_EPOCH="1800000000", TZ=("UTC", "Asia/Tokyo")[number])  # fmt: skip
        finally:
            os.umask(before)
        folders.append(base / "dist")
    return folders


@pytest.fixture(scope="module")
def wheel(built: list[Path]) -> Path:
    """The wheel."""
    (path,) = built[0].glob("*.whl")
    return path


def test_the_bytes_are_the_same_wherever_they_are_built(built: list[Path]) -> None:
    """Folder, umask, files' times and time zone make no difference; the time is the given one."""
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in built]
    assert contents[0] == contents[1]
    (sdist,) = built[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert {member.mtime for member in archive} == {1800000000}
        assert {member.mode for member in archive} == {0o644, 0o755}


def test_an_index_would_take_them(built: list[Path]) -> None:
    """`twine check --strict`: the description renders, and no metadata is missing."""
    output = run(tool("twine"), "check", "--strict", *built[0].iterdir(), NO_COLOR="1")
    assert output.count("PASSED") == 2


def test_readme_has_no_link_that_needs_the_repository() -> None:
    """On an index or in `/usr/share/doc` there is nothing beside it."""
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not re.match(r"https://|#", link)] == []


def test_the_base_is_small_and_extras_stay_extras(wheel: Path, tmp_path: Path) -> None:
    """Nothing but what every command needs is required, and all of it is below 25 MB."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    needs = metadata.get_all("Requires-Dist") or []
    base = {re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need}
    assert base == BASE
    assert set(metadata.get_all("Provides-Extra") or []) == {*EXTRAS, "dev"}
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    run(sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python", "install",
        "--quiet", "--no-compile", "--disable-pip-version-check", wheel)  # fmt: skip
    size = sum(path.lstat().st_size for path in tmp_path.rglob("*") if not path.is_dir())
    print(f"an installation without extras: {size / 1e6:.1f} MB")
    assert size < LARGEST
    run(tmp_path / "venv/bin/kvm-launch", "--version")


@pytest.mark.parametrize("program", ["pipx", "uv"])
def test_tools_install_it_apart(program: str, wheel: Path, tmp_path: Path) -> None:
    """Both programs run, every page is found, and what is said of a missing extra brings it."""
    places = {
        "PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man",
        "UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "cache",
    }  # fmt: skip
    environment = {name: str(tmp_path / place) for name, place in places.items()}
    command = tool(program)
    verb = ["install"] if program == "pipx" else ["tool", "install"]
    run(command, *verb, wheel, **environment)
    for name in ("kvmhooks", "kvm-launch"):
        assert run(tmp_path / "bin" / name, "--version").startswith(f"{name} 0.")
    for page in PAGES:
        assert Path(run(tmp_path / "bin/kvmhooks", "man", "--path", page).strip()).is_file()
    for shell in ("bash", "zsh", "fish"):
        assert "kvm-launch" in run(tmp_path / "bin/kvmhooks", "completion", shell)
    python = (tmp_path / "bin/kvmhooks").resolve().with_name("python")
    ask = "from kvmhooks.distribution import missing; print(missing('sriov'))"
    first, *rest = shlex.split(re.findall("`(.*)`", run(python, "-c", ask))[0])
    assert first == program
    run(command, *rest, **environment)  # without the wheel beside it: no index has kvmhooks yet
    run(python, "-c", "import pyroute2, kvmhooks")
