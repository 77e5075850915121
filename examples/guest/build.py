"""Build the guest of examples/quickstart.toml: Debian's cloud kernel, and an initramfs of ours.

Needs apt-get, dpkg, cpio, kmod and a static busybox (Debian's busybox-static). The kernel's
package is downloaded and unpacked below the output folder, never installed. A file that is there
already stays.

    python3 examples/guest/build.py build/guest
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BUSYBOX = Path("/bin/busybox")
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "button", "evdev")
"""Modules of the cloud kernel that the guest needs: disks, networks, hvc0, the power button."""

DISK_BYTES = 64 << 20


def main() -> int:
    """Build into the folder that is named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to build in")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    kernel = fetch_kernel(folder)
    write_initramfs(folder / "initramfs.img", kernel)
    make_disk(folder / "disk.img")
    print(f"the guest is in {folder}")
    return 0


def fetch_kernel(folder: Path) -> Path:
    """Unpack the kernel's package, link its image as ``vmlinuz``, and give its module folder."""
    unpacked = folder / "kernel"
    if not (folder / "vmlinuz").exists():
        package = kernel_package()
        print(f"downloading {package}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as download:
            # apt's own unprivileged user cannot write here; the archive's signature is checked
            # all the same.
            subprocess.run(
                ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package],
                cwd=download,
                check=True,
            )
            (archive,) = Path(download).glob("*.deb")
            shutil.rmtree(unpacked, ignore_errors=True)
            subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
        (image,) = (unpacked / "boot").glob("vmlinuz-*")
        shutil.copyfile(image, folder / "vmlinuz.new")
        (folder / "vmlinuz.new").rename(folder / "vmlinuz")
    (modules,) = (unpacked / "lib" / "modules").iterdir()
    return modules


def kernel_package() -> str:
    """Return the package with the image itself: what ``linux-image-cloud-amd64`` depends on."""
    output = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"Depends: (linux-image-\S+)", output)
    if found is None:
        raise SystemExit("apt knows no linux-image-cloud-amd64: run apt-get update first")
    return found[1]


def write_initramfs(target: Path, modules: Path) -> None:
    """Write busybox, our init and the modules as a gzipped cpio archive."""
    with tempfile.TemporaryDirectory() as staging:
        root = Path(staging)
        for name in ("bin", "dev", "proc", "sys", "modules"):
            (root / name).mkdir()
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        shutil.copy(HERE / "init", root / "init")
        (root / "init").chmod(0o755)
        order = needed(modules, MODULES)
        for path in order:
            shutil.copy(path, root / "modules")
        (root / "modules" / "order").write_text("".join(f"{path.name}\n" for path in order))
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        archive = subprocess.run(
            ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"],
            input="\n".join(names).encode(),
            cwd=root,
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    target.write_bytes(gzip.compress(archive, compresslevel=1, mtime=0))


def needed(modules: Path, names: tuple[str, ...]) -> list[Path]:
    """Return modules by ``names``, each after its dependencies; not those built into the kernel."""
    root, version = str(modules.parents[2]), modules.name
    subprocess.run(["/sbin/depmod", "-b", root, version], check=True)
    output = subprocess.run(
        ["/sbin/modprobe", "-d", root, "-S", version, "--show-depends", "--all", *names],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = re.findall(r"^insmod (\S+)", output, re.MULTILINE)
    return [Path(path) for path in dict.fromkeys(paths)]


def make_disk(target: Path) -> None:
    """Make an empty raw image, if there is none."""
    if not target.exists():
        with target.open("wb") as image:
            os.truncate(image.fileno(), DISK_BYTES)


if __name__ == "__main__":
    sys.exit(main())
