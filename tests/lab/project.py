"""The project under test: its wheel, what it depends on, and their way into the lab.

There is no network in the lab. The project's requirements are in the image; the project itself is
put into the frozen server (see ``frozen``), so a changed line costs half a minute, not an image.
"""

from __future__ import annotations

import configparser
import io
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from . import cache
from .command import run
from .errors import LabError

SETUP = cache.REPOSITORY / "setup.cfg"
SOURCES = ("setup.cfg", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE",
           "kvmhooks", "launcher", "hooks", "docs", "build_backend")  # fmt: skip
"""The files that a wheel is made from."""

TARGET = ("--implementation=cp --only-binary=:all:"
          " --platform=manylinux_2_28_x86_64 --platform=manylinux_2_17_x86_64"
          " --platform=manylinux2014_x86_64 --platform=any").split()  # fmt: skip
"""The lab's Python but for its version, whatever runs pip."""


def site(python: str) -> PurePosixPath:
    """Return where Debian's Python looks for what was not packaged by Debian."""
    return PurePosixPath(f"usr/local/lib/python{python}/dist-packages")


def requirements() -> list[str]:
    """Return the requirements that setup.cfg names; nothing while there is no setup.cfg.

    Virtual functions are set with a package that is an extra.
    """
    parser = configparser.ConfigParser()
    parser.read(SETUP)
    lines = parser.get("options", "install_requires", fallback="").splitlines()
    lines += parser.get("options.extras_require", "sriov", fallback="").splitlines()
    return sorted(line.strip() for line in lines if line.strip())


def install_requirements(root: Path, python: str) -> None:
    """Fill a wheelhouse on this machine and install from it below this root."""
    if not requirements():
        return
    target = [f"--python-version={python}", *TARGET]
    with tempfile.TemporaryDirectory(prefix="wheelhouse-") as wheelhouse:
        _pip("download", "--dest", wheelhouse, *target, *requirements())
        local = ["--no-index", "--find-links", wheelhouse, "--no-compile"]
        into = str(root / site(python))
        _pip("install", "--target", into, *local, *target, *requirements())


def source_key() -> str | None:
    """The content of the project's own files; None while there is no project."""
    if not SETUP.exists():
        return None
    return cache.digest(*_sources())


def archive(python: str) -> bytes:
    """The project's wheel, built now, as a tar archive to be unpacked at the lab's ``/``."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as directory:
        source = Path(directory) / "source"  # a copy, as building leaves its traces in the source
        source.mkdir()
        for path in _sources():
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, source / path.name)
        _pip("wheel", "--no-deps", "--wheel-dir", directory, str(source))
        (wheel,) = Path(directory).glob("*.whl")
        return _laid_out(wheel, site(python))


def _sources() -> list[Path]:
    paths = [cache.REPOSITORY / name for name in SOURCES]
    return [path for path in paths if path.exists()]


def _pip(*words: str) -> None:
    run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words])


def _laid_out(wheel: Path, modules: PurePosixPath) -> bytes:
    """A wheel's files at the places of an installation (the binary distribution format of PyPA)."""
    data = io.BytesIO()
    with zipfile.ZipFile(wheel) as source, tarfile.open(fileobj=data, mode="w") as target:
        for name in source.namelist():
            if not name.endswith("/"):
                path = _place(PurePosixPath(name), modules)
                content = source.read(name)
                if path.parts[:3] == ("usr", "local", "bin"):
                    _add(target, path, _shebang(content), 0o755)
                else:
                    _add(target, path, content, 0o644)
        (listed,) = [name for name in source.namelist() if name.endswith("entry_points.txt")]
        for program, content in _console_scripts(source.read(listed).decode()):
            _add(target, PurePosixPath("usr/local/bin") / program, content, 0o755)
    return data.getvalue()


def _place(name: PurePosixPath, modules: PurePosixPath) -> PurePosixPath:
    if not name.parts[0].endswith(".data"):
        return modules / name
    rest = PurePosixPath(*name.parts[2:])
    places = {"purelib": modules, "platlib": modules, "scripts": PurePosixPath("usr/local/bin"),
              "data": PurePosixPath("usr/local")}  # fmt: skip
    if name.parts[1] not in places:
        raise LabError(f"the wheel has a file of a kind that the lab does not install: {name}")
    return places[name.parts[1]] / rest


def _shebang(script: bytes) -> bytes:
    first, newline, rest = script.partition(b"\n")
    return b"#!/usr/bin/python3" + newline + rest if first == b"#!python" else script


def _console_scripts(entry_points: str) -> list[tuple[str, bytes]]:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(entry_points)
    scripts = []
    for program, target in parser.items("console_scripts"):
        module, _, function = target.partition(":")
        text = f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\n"
        scripts.append((program, f"{text}sys.exit({function}())\n".encode()))
    return scripts


def _add(target: tarfile.TarFile, path: PurePosixPath, content: bytes, mode: int) -> None:
    item = tarfile.TarInfo(str(path))
    item.size = len(content)
    item.mode = mode
    target.addfile(item, io.BytesIO(content))
