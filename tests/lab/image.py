"""The image: one disk for all variants, the kernels beside it.

An image is a directory of the cache:

    root.img              the root file system, ext4
    vmlinuz-SUITE         a kernel for each suite
    initrd-SUITE          its initramfs
    contents.json         what was put in: packages with versions, kernels

Inside, /opt/nested holds the kernel and initramfs for guests of the lab, /opt/qemu-10 the files of
QEMU 10.
"""

from __future__ import annotations

import json
import shutil
from functools import cache as memoised
from pathlib import Path

from . import cache, debian, initramfs, project, qemu, rootfs
from .command import run

SUITES = (debian.SUITE, debian.BACKPORTS)
SIZE = "6G"
"""Of the disk; only what is used takes space."""

BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
NESTED_MODULES = ("virtio_pci", "virtio_net", "igbvf", "nvme", "button", "evdev")

HERE = Path(__file__).parent


def build() -> Path:
    """The image's directory; built if this content was not built before."""
    return cache.entry("image", key(), _fill)


@memoised
def key() -> str:
    """All that goes into an image, ordinary packages in the versions of the day of building."""
    code = [HERE / name for name in ("image.py", "rootfs.py", "initramfs.py", "debian.py", "guest")]
    return cache.key_of(
        [debian.versions_of(["linux-image-amd64"], suite) for suite in SUITES],
        qemu.versions(),
        rootfs.PACKAGES,
        project.requirements(),
        cache.digest(*code),
    )


def _fill(into: Path) -> None:
    root = into / "root"
    rootfs.make(root)
    project.install_requirements(root)
    shutil.copytree(qemu.unpacked(), root / "opt" / "qemu-10", symlinks=True)
    kernels = {}
    for suite in SUITES:
        version = rootfs.add_kernel(root, debian.kernel_package(suite), suite, into)
        kernels[suite] = version
        _initramfs(root, version, "initrd-init", BOOT_MODULES, into / f"initrd-{suite}")
    nested = root / "opt" / "nested"
    nested.mkdir()
    shutil.copy(into / f"vmlinuz-{debian.SUITE}", nested / "vmlinuz")
    _initramfs(root, kernels[debian.SUITE], "nested-init", NESTED_MODULES, nested / "initrd")
    contents = {"kernels": kernels, "packages": _packages(root)}
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
