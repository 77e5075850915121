"""The image: one disk for all variants of a Debian release, the kernels beside it.

An image is a directory of the cache:

    root.img              the root file system, ext4
    vmlinuz-SUITE         a kernel for each suite
    initrd-SUITE          its initramfs
    contents.json         what was put in: packages with versions, kernels, Python's version

Inside, /opt/nested holds the kernel and initramfs for guests of the lab; in bookworm /opt/qemu-10
has the files of QEMU 10.
"""

from __future__ import annotations

import json
import shutil
from functools import cache as memoised
from pathlib import Path

from . import cache, debian, initramfs, project, qemu, rootfs
from .command import run

SUITES = {
    debian.SUITE: (debian.SUITE, debian.BACKPORTS),
    debian.TRIXIE: (debian.TRIXIE,),
    debian.SID: (debian.SID,),
}
"""For each release the suites whose kernels its image has, its own first."""

SIZE = "6G"
"""Of the disk; only what is used takes space."""

BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4")
OLD_BOOT_MODULES = ("crc32c_generic",)
"""A module that ext4 asks the crypto API for; in sid's kernel (7.2) it is no module of its own any
more.
"""

NESTED_MODULES = ("virtio_pci", "virtio_net", "igbvf", "nvme", "button", "evdev")

HERE = Path(__file__).parent


def build(release: str) -> Path:
    """The directory of a release's image; built if this content was not built before."""
    return cache.entry("image", key(release), lambda into: _fill(release, into))


def python_of(release: str) -> str:
    """Return the version of the image's Python, such as 3.11."""
    return str(json.loads((build(release) / "contents.json").read_text())["python"])


@memoised
def key(release: str) -> str:
    """All that goes into an image, ordinary packages in the versions of the day of building."""
    names = ("image.py", "rootfs.py", "initramfs.py", "debian.py", "project.py", "guest")
    content = cache.key_of(
        [debian.versions_of(["linux-image-amd64"], suite) for suite in SUITES[release]],
        qemu.versions(),
        project.requirements(),
        cache.digest(*(HERE / name for name in names)),
    )
    return f"{release}-{content}"


def _fill(release: str, into: Path) -> None:
    root = into / "root"
    rootfs.make(root, release)
    python = rootfs.python_of(root)
    project.install_requirements(root, python)
    if release == debian.SUITE:
        shutil.copytree(qemu.unpacked(), root / "opt" / "qemu-10", symlinks=True)
    kernels = {}
    for suite in SUITES[release]:
        kernels[suite] = rootfs.add_kernel(root, suite, into)
        wanted = (*BOOT_MODULES, *OLD_BOOT_MODULES) if release != debian.SID else BOOT_MODULES
        _initramfs(root, kernels[suite], "initrd-init", wanted, into / f"initrd-{suite}")
    nested = root / "opt" / "nested"
    nested.mkdir()
    shutil.copy(into / f"vmlinuz-{release}", nested / "vmlinuz")
    _initramfs(root, kernels[release], "nested-init", NESTED_MODULES, nested / "initrd")
    contents = {"kernels": kernels, "python": python, "packages": _packages(root)}
    (into / "contents.json").write_text(json.dumps(contents, indent=1) + "\n")
    disk = into / "root.img"
    extended = ["-E", "lazy_itable_init=1,root_owner=0:0", "-O", "^has_journal", "-m", "0"]
    run(["mke2fs", "-q", "-t", "ext4", *extended, "-L", "lab", "-d", root, disk, SIZE])
    shutil.rmtree(root)


def _initramfs(root: Path, version: str, init: str, wanted: tuple[str, ...], into: Path) -> None:
    initramfs.write(
        into,
        init=rootfs.GUEST / init,
        busybox=root / "bin" / "busybox",
        modules=root / "lib" / "modules" / version,
        wanted=wanted,
    )


def _packages(root: Path) -> list[str]:
    asked = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package}=${Version}\n"]
    return run(asked).splitlines()
