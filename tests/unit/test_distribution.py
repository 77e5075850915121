"""Messages and places that depend on how kvmhooks was installed."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from kvmhooks import distribution
from kvmhooks.cli import manual
from kvmhooks.cli.main import main
from kvmhooks.errors import LaunchError, UsageError
from kvmhooks.libvirt.definitions import dump

ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/lib/python3/dist-packages/kvmhooks")


@pytest.mark.parametrize(
    ("marker", "package", "command"),
    [
        ("pipx_metadata.json", None, "pipx inject kvmhooks {library}"),
        ("uv-receipt.toml", None, "uv tool install '{asked}'"),
        ("pyvenv.cfg", None, f"{sys.executable} -m pip install '{{asked}}'"),
        ("pyvenv.cfg", DEBIAN, "apt install {debian}"),
    ],
)
@pytest.mark.parametrize("extra", distribution.EXTRAS)
def test_a_missing_library_is_named_with_what_brings_it(
    tmp_path: Path, marker: str, package: Path | None, command: str, extra: str
) -> None:
    """In the words of pipx, uv, pip or apt, whichever brought kvmhooks."""
    (tmp_path / marker).touch()
    library, debian = distribution.EXTRAS[extra]
    message = distribution.missing(
        extra, package=package or tmp_path / "lib/site-packages/kvmhooks", prefix=str(tmp_path)
    )
    expected = command.format(library=library, asked=f"kvmhooks[{extra}]", debian=debian)
    assert message == f"{debian if package else library} is not installed: `{expected}` brings it"


def test_who_needs_libvirts_library_is_told_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an option of kvm-launch: `kvmhooks tune DOMAIN` needs it as well."""
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(LaunchError, match=r"^libvirt: libvirt-python is not installed: `"):
        dump("qemu:///system", "web")


def test_the_extras_are_those_of_the_metadata() -> None:
    """Each extra but that of developers, with its one library."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = dict(parser["options.extras_require"])
    del extras["dev"]
    assert {name: text.strip().partition(">=")[0] for name, text in extras.items()} == {
        name: extra.library for name, extra in distribution.EXTRAS.items()
    }


@pytest.mark.parametrize(
    ("modules", "base"),
    [
        ("venv/lib/python3.11/site-packages", "venv"),
        ("home/.local/lib/python3.13/site-packages", "home/.local"),
        ("usr/local/lib/python3.11/dist-packages", "usr/local"),
        ("usr/lib/python3/dist-packages", "usr"),
        ("target", "target"),
    ],
)
def test_pages_and_completions_are_found_beside_the_modules(
    tmp_path: Path, modules: str, base: str
) -> None:
    """In each scheme that pip and Debian install by; packed, as Debian has its pages, as well."""
    package = tmp_path / modules / "kvmhooks"
    assert distribution.page("vm.toml", package) is None
    assert distribution.completion("bash", "kvmhooks", package) is None
    page = tmp_path / base / "share/man/man5/vm.toml.5.gz"
    zsh = tmp_path / base / "share/zsh/vendor-completions/_kvm-launch"
    for path in (page, zsh):
        path.parent.mkdir(parents=True)
        path.touch()
    assert distribution.page("vm.toml", package) == page
    assert distribution.completion("zsh", "kvm-launch", package) == zsh


@pytest.mark.parametrize("page", distribution.PAGES)
def test_each_page_is_found(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`kvmhooks man --path` prints the file of a page of this very installation."""
    assert main(["man", "--path", page]) == 0
    path = Path(capsys.readouterr().out.rstrip("\n"))
    assert path.read_text().startswith(f".TH {page.upper()} {distribution.PAGES[page]} ")


@pytest.mark.parametrize("shell", distribution.COMPLETIONS)
def test_completions_are_printed_for_both_programs(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One script that a shell can take in as it is."""
    assert main(["completion", shell]) == 0
    output = capsys.readouterr().out
    assert "kvmhooks" in output
    assert "kvm-launch" in output


def test_bash_takes_the_completions_in() -> None:
    """README and the help say how: both programs complete then."""
    words = (
        f'eval "$({sys.executable} -m kvmhooks completion bash)"; complete -p kvmhooks kvm-launch'
    )
    done = subprocess.run(
        ["/bin/bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("complete ") == 2


def test_what_was_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page without man(1), and an installation without pages, end in one message."""
    monkeypatch.setattr(manual, "MAN", tmp_path / "man")
    assert main(["man"]) == 1
    monkeypatch.setattr(distribution, "page", lambda _: None)
    with pytest.raises(UsageError, match="found no page kvmhooks beside"):
        manual.main("man", [])


@pytest.mark.parametrize("module", ["kvmhooks", "kvm_launch"])
def test_a_package_runs_as_its_program(module: str) -> None:
    """`python -m` gives the same command."""
    path = f"{ROOT}:{ROOT / 'launcher'}"
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        env={"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"{module.replace('_', '-')} 0.")
