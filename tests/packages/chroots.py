"""Clean Debian systems to install packages in, made from this machine's own apt sources.

A system is made once (``tests.lab.cache``) and never changed: each test has a layer over it.
Programs run in it in mount, process and network namespaces of their own, which end with them, so
nothing is mounted, running or changed on the machine. They see a ``/proc`` of their own and the
machine's ``/sys``, but can write only what is their processes': what containers have read-only
(moby, oci/defaults.go, ``ReadonlyPaths``) is so here. They have no network: what a test installs is
in the system, downloaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.lab import cache, debian
from tests.lab.command import run

_PROGRAMS: Final = ("mmdebstrap", "unshare", "chroot")

_APART: Final = (
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--"),
)
"""A system is made like that too: mmdebstrap mounts what packages need to be configured."""

_ENTER: Final = """
lower=$1 layer=$2 shared=$3 script=$4
mount -t overlay overlay "$layer/root" \
    -o "lowerdir=$lower,upperdir=$layer/upper,workdir=$layer/work"
mount -t proc proc "$layer/root/proc"
for global in bus fs irq sys sysrq-trigger; do
    if [ -e "$layer/root/proc/$global" ]; then
        mount --bind "$layer/root/proc/$global" "$layer/root/proc/$global"
        mount -o remount,bind,ro "$layer/root/proc/$global"
    fi
done
mount --bind /sys "$layer/root/sys"
mount -o remount,bind,ro "$layer/root/sys"
mount -t tmpfs tmpfs "$layer/root/dev/shm"
mount -t devpts devpts "$layer/root/dev/pts" -o gid=5,mode=620,ptmxmode=666
mount --bind "$shared" "$layer/root/mnt"
exec chroot "$layer/root" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive /bin/sh -euc "cd; $script"
"""


class Chroot:
    """A system with a layer of its own, which is below ``layer``."""

    def __init__(self, system: Path, layer: Path, shared: Path) -> None:
        self._system = system
        self._layer = layer
        self._shared = shared
        for name in ("upper", "work", "root"):
            (layer / name).mkdir(parents=True)

    def run(self, script: str, *, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a shell script in it, to its end; ``/mnt`` is the folder that is shared."""
        command = [*_APART[:-1], "--net", "--ipc", "--", "/bin/sh", "-euc", _ENTER, "enter"]
        where = [str(path) for path in (self._system, self._layer, self._shared)]
        return subprocess.run(
            [*command, *where, script],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip

    def output(self, script: str, *, seconds: float = 300) -> str:
        """Run a script that has to end well, and return what it printed."""
        done = self.run(script, seconds=seconds)
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in it, between two runs."""
        at = self._layer / "upper" / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)

    def changes(self) -> dict[str, str]:
        """All that is not as in the system: each path with its kind, mode and content.

        What was removed is a device with the numbers 0, 0 (overlayfs.rst, «whiteouts»).
        """
        found = {}
        upper = self._layer / "upper"
        for folder, folders, files in os.walk(upper):
            for name in (*folders, *files):
                path = Path(folder, name)
                below = self._system / path.relative_to(upper)
                description = _described(path)
                if not (below.is_symlink() or below.exists()) or description != _described(below):
                    found[str(path.relative_to(upper))] = description
        return found


def lacking() -> str:
    """Return why there can be no system here; empty if there can."""
    places = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
    missing = [name for name in _PROGRAMS if not any(Path(at, name).exists() for at in places)]
    if os.geteuid() != 0:
        return "only root can make a chroot"
    return f"found no {', '.join(missing)}: run `make apt-deb`" if missing else ""


def system(suite: str, packages: Sequence[str], downloaded: Sequence[str] = ()) -> Path:
    """Return a system of this suite with these packages, and others downloaded beside.

    It is made if it has not been made before, in the versions of the day.
    """
    key = cache.key_of(suite, packages, downloaded, cache.digest(Path(__file__)))

    def make(into: Path) -> None:
        _make(into / "root", suite, packages, downloaded)

    return cache.entry(f"chroot-{suite}", key, make) / "root"


def _make(root: Path, suite: str, packages: Sequence[str], downloaded: Sequence[str]) -> None:
    apt = [f"--aptopt={line}" for line in debian.proxy_options()]
    download = f'chroot "$1" apt-get -y --download-only install {" ".join(downloaded)}'
    command = [
        *_APART,
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", *apt),
        *('--aptopt=APT::Install-Recommends "0"', '--aptopt=Acquire::Languages "none"'),
        *("--dpkgopt=force-unsafe-io", "--skip=cleanup/apt"),
        *([f"--customize-hook={download}"] if downloaded else []),
        *(f"--include={','.join(packages)}", suite, str(root), "-"),
    ]
    run(command, stdin="\n".join(debian.sources().lines(suite)) + "\n", seconds=1800)


def _described(path: Path) -> str:
    """Return what is there, so that two are equal if they say the same."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"link to {path.readlink()}"
    content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
    return f"{status.st_mode:o} {status.st_uid} {status.st_gid} {status.st_rdev} {content}"
