"""The wheel and the sdist, built and installed as a user would."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.integration.components import ROOT
from tests.tools.export import export


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of the checkout."""
    base = tmp_path_factory.mktemp("dist")
    source = export(base / "source")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", base / "dist", source],
        check=True,
        capture_output=True,
    )
    return base / "dist"


def test_the_wheel_holds_every_module_and_nothing_else(built: Path) -> None:
    """Every source file of both packages is in the wheel, and every page and completion, but no
    test, example or hook of git."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(base))
        for base in (ROOT, ROOT / "launcher")
        for package in ("kvmhooks", "kvm_launch")
        for path in (base / package).rglob("*")
        if path.suffix in {".py", ".typed", ".S"}
    }
    data = {name.rpartition("/")[2] for name in names if ".data/data/share/" in name}
    shipped = {
        path.name for folder in ("man", "completion") for path in (ROOT / "docs" / folder).iterdir()
    }
    assert data == shipped
    assert {name for name in names if ".data/" not in name} == expected


def test_the_sdist_holds_tests_and_examples(built: Path) -> None:
    """The sdist is enough to test it and to run the example."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "LICENSE",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "examples/quickstart.toml",
        "examples/guest/init",
        "tests/integration/test_packaging.py",
        "tests/fakehost.py",
    }
    assert wanted <= names


def test_the_wheel_works_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    """Installed without libvirt's headers, it tells its version, prints arguments, and types."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"

    def run(*words: object) -> str:
        command = [str(word) for word in words]
        ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return ran.stdout

    run(binaries / "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    assert run(binaries / "kvm-launch", "--version").startswith("kvm-launch 0.")
    assert run(binaries / "kvmhooks", "--version").startswith("kvmhooks 0.")
    vm = tmp_path / "vm.toml"
    vm.write_text('name = "small"\n[cpu]\nvcpus = 1\n[memory]\nsize = "64MiB"\n')
    output = run(binaries / "kvm-launch", "--accel", "tcg", "--print", "argv", vm)
    assert output.startswith("qemu-system-x86_64 \\\n    -name guest=small,debug-threads=on")
    program = (
        "import kvmhooks; from importlib.resources import files; "
        "print(kvmhooks.plan(kvmhooks.load_vm('vm.toml'), kvmhooks.read_host()).name, "
        "files(kvmhooks).joinpath('py.typed').is_file())"
    )
    assert run(binaries / "python", "-c", program) == "small True\n"
    listed = run(binaries / "pip", "list", "--format=freeze", "--disable-pip-version-check")
    assert "libvirt" not in listed
