"""The Debian package in clean Debian systems: installed, used, upgraded, removed, purged.

What README's first lines say is what is run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest

from kvmhooks.distribution import EXTRAS
from kvmhooks.version import VERSION
from tests.packages import chroots
from tests.packages.chroots import Chroot
from tests.tools import build_deb

pytestmark = pytest.mark.skipif(bool(chroots.lacking()), reason=chroots.lacking() or "-")

ROOT: Final = Path(__file__).parents[2]
SUITES: Final = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian 12 and 13, with their Pythons."""

HOST: Final = ("qemu-system-x86", "libvirt-daemon")
"""Packages that a server of this kind has before kvmhooks comes."""

NEWER: Final = f"{VERSION}+1"

ALWAYS: Final = re.compile(
    r"(var/(log|cache/(apt|ldconfig|debconf)|lib/(apt|dpkg/(status|available|lock|triggers|"
    r"updates|diversions|alternatives|arch|info/format)|systemd|python))|etc/ld\.so\.cache|root|tmp"
    r"|usr/share/python3/(runtime|debpython)|mnt|.*/__pycache__)\b"
)
"""Files that any package changes that comes or goes: logs, apt's and dpkg's own records."""

OURS: Final = re.compile(r"kvm.?(hooks|launch)")

HELD: Final = """
import sys
from kvmhooks.isolate.claims.claim import Claim
from kvmhooks.isolate.system.system import System
from kvmhooks.isolate.record.state import RUNNING, Held, State
from kvmhooks.isolate.system.process_stat import Process
from kvmhooks.isolate.record.store import Store
system = System()
state = State(system.read("proc/sys/kernel/random/boot_id").strip())
claim = Claim.from_json({claim!r})
state.held[claim.key] = Held(claim, holder=Process.find(system, int(sys.argv[1])), state=RUNNING)
Store("/").save(state.to_text())
"""
"""Puts a claim on record that a process holds; nothing of the machine is touched for it."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the package, and one of a version to come beside it."""
    into = tmp_path_factory.mktemp("deb")
    build_deb.build(into, tmp_path_factory.mktemp("work"))
    (made,) = into.glob("*.deb")
    tree = tmp_path_factory.mktemp("newer") / "tree"
    for command in (
        ["dpkg-deb", "-R", made, tree],
        ["sed", "-i", f"s/^Version: .*/Version: {NEWER}/", tree / "DEBIAN/control"],
        ["sed", "-i", f's/"{VERSION}"/"{NEWER}"/',
         tree / "usr/lib/python3/dist-packages/kvmhooks/version.py"],
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, into / "newer.deb"],
    ):  # fmt: skip
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return into


@pytest.fixture(params=SUITES)
def chroot(request: pytest.FixtureRequest, package: Path, tmp_path: Path) -> Chroot:
    """A clean system with QEMU and libvirt, and what the package depends on, downloaded."""
    needs = field(package, "Depends")
    names = re.findall(r"(python3[\w.-]*)", re.sub(r":any|\([^)]*\)", "", needs))
    system = chroots.system(request.param, HOST, names)
    files = tmp_path / "files"
    files.mkdir()
    for path in package.glob("*.deb"):
        (files / path.name).hardlink_to(path)
    for name in ("vmlinuz", "initramfs.img", "disk.img"):
        (files / name).write_bytes((ROOT / "build/guest" / name).read_bytes())
    made = Chroot(system, tmp_path / "layer", files)
    example = (ROOT / "examples/quickstart.toml").read_text().replace("../build/guest", "/mnt")
    made.write("root/db1.toml", example)
    domain = (ROOT / "tests/golden/domains/minimal.xml").read_text()
    made.write("root/mydomain.xml", domain)
    made.output(f"mkdir /root/dist && cp /mnt/kvmhooks_{VERSION}_all.deb /root/dist/")
    return made


def field(package: Path, name: str) -> str:
    """A field of the package's control file."""
    (path,) = package.glob("kvmhooks_*.deb")
    command = ["dpkg-deb", "-f", str(path), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def readme() -> list[str]:
    """The commands of README's first block, without their remarks."""
    text = (ROOT / "README.md").read_text()
    block = next(part for part in text.split("\n\n") if part.startswith("    "))
    return [shlex.join(shlex.split(line, comments=True)) for line in block.splitlines()]


def install(name: str, *words: str) -> str:
    """The command that installs a package that is in the shared folder."""
    return f"apt-get -y {' '.join(words)} --no-install-recommends install /mnt/{name}"


def left(chroot: Chroot) -> dict[str, str]:
    """Return what was not in the system, but for what any package would change."""
    found = chroot.changes()
    return {path: what for path, what in found.items() if not ALWAYS.match(path)}


def test_the_bytes_are_the_same_wherever_it_is_built(package: Path, tmp_path: Path) -> None:
    """Neither the folder, nor the umask, the time zone or the hour makes a difference."""
    before = os.umask(0o077)
    try:
        build_deb.build(tmp_path / "out", tmp_path / "another/folder", more={"TZ": "Asia/Tokyo"})
    finally:
        os.umask(before)
    for kind in (f"kvmhooks_{VERSION}_all.deb", f"kvmhooks_{VERSION}.tar.xz"):
        assert (tmp_path / "out" / kind).read_bytes() == (package / kind).read_bytes(), kind


def test_it_says_what_the_source_says() -> None:
    """One version everywhere, each extra's library by its Debian name, README's command."""
    control = (ROOT / "debian/control").read_text()
    for extra in EXTRAS.values():
        assert re.search(rf"\b{extra.debian}\b", control), extra
    assert (ROOT / "debian/changelog").read_text().startswith(f"kvmhooks ({VERSION}) ")
    assert readme()[0] == f"apt install ./dist/kvmhooks_{VERSION}_all.deb"


def test_the_readmes_first_lines_and_then_no_trace(chroot: Chroot) -> None:
    """Each command of README's ends well; what purging leaves is what was there before."""
    commands = readme()
    first, *rest = commands
    assert first.startswith("apt install ./dist/kvmhooks")
    chroot.output(f"{first.replace('apt ', 'apt-get -y ')} --no-install-recommends")
    chroot.output("apt-get -y purge kvmhooks")
    before = left(chroot)
    assert not [path for path in before if OURS.search(path)]
    chroot.output(install(f"kvmhooks_{VERSION}_all.deb"))
    outputs = {command: chroot.output(command) for command in rest}
    assert "accelerator: tcg" in outputs["kvm-launch db1.toml"]
    assert outputs["kvm-launch db1.toml"].endswith("end: the guest powered off\n")
    assert "hooks install" in commands[-1]
    hook = "/etc/libvirt/hooks/qemu.d/kvmhooks"
    assert outputs[commands[-1]] == f"{hook}: kvmhooks {VERSION}\n"
    chroot.output("kvmhooks hooks status && zcat $(kvmhooks man --path) | grep -q KVMHOOKS")
    chroot.output("test -e /etc/systemd/system/multi-user.target.wants/kvmhooks-reconcile.service")
    chroot.output(install("newer.deb"))
    assert chroot.output("kvmhooks hooks status") == f"{hook}: kvmhooks {NEWER}\n"
    chroot.output("apt-get -y remove kvmhooks")
    assert chroot.run(f"test -e {hook}").returncode == 1
    purged = chroot.output("apt-get -y purge kvmhooks")
    assert "stays" not in purged
    after = left(chroot)
    assert after == before


def test_what_is_held_keeps_the_package(chroot: Chroot) -> None:
    """Removing it is refused with what is held, until it is given back; an upgrade is not. The hook
    comes with neither; a TPM's state is kept and named when all else is purged."""
    chroot.output(install(f"kvmhooks_{VERSION}_all.deb"))
    uuid = "00000000-0000-4000-8000-000000000001"
    claim = {"format": 1, "driver": "qemu", "uuid": uuid, "name": "db1", "exclusive": "",
             "hugepages": [], "strict": False, "settings": {}, "disks": []}  # fmt: skip
    program = HELD.replace("{claim!r}", repr(claim))
    chroot.write("root/hold.py", program)
    hold = "sleep 60 & python3 hold.py $!;"
    done = chroot.run(f"{hold} apt-get -y remove kvmhooks")
    assert done.returncode == 100
    output = done.stdout + done.stderr
    expected = r"^db1: found it running \(process \d+\) with a claim, expected none$"
    assert re.search(expected, output, re.MULTILINE), output
    chroot.output("dpkg --verify kvmhooks && kvmhooks --version")
    chroot.output(f"{hold} {install('newer.deb')}")
    assert chroot.run("test -e /etc/libvirt/hooks/qemu.d").returncode == 1
    chroot.output("mkdir -p /var/lib/kvm-launch/db1/tpm")
    output = chroot.output("apt-get -y purge kvmhooks")
    assert "/var/lib/kvm-launch stays, with what VMs' owners have there: db1" in output
    assert [path for path in left(chroot) if OURS.search(path)] == [
        "var/lib/kvm-launch", "var/lib/kvm-launch/db1", "var/lib/kvm-launch/db1/tpm"
    ]  # fmt: skip
