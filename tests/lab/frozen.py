"""Frozen servers: booted and warmed once, restored in a second or two as often as wanted.

Two layers, each a directory of the cache with ``disk.qcow2``, ``state`` and ``console.log``:

    frozen    a variant of the server, warm: capabilities probed, modules loaded, caches filled
    server    the same with the project installed

Time stands still in a frozen server: its clock goes on from the moment of freezing.
"""

from __future__ import annotations

import shutil
import time
from functools import cache as memoised
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from . import cache, image, project, qemu
from .client import Agent
from .machine import Boot, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from .variants import Variant

HERE = Path(__file__).parent
BOOT_SECONDS = 180.0
WARM_SECONDS = 180.0
KEEP = 2
"""So many of the latest entries of each kind and variant stay in the cache."""

WAIT_FOR_SYSTEMD = (
    "for try in $(seq 600); do case $(systemctl is-system-running) in running) exit 0;;"
    " degraded) systemctl --failed >&2; exit 1;; esac; sleep 0.2; done; exit 1"
)
WARM = (
    "modprobe -a kvm_amd vfio-pci igbvf",
    "virsh -q version && virsh -q domcapabilities > /dev/null && virsh -q nodeinfo > /dev/null",
    "numactl --hardware && lstopo --of xml > /dev/null && ls -lR /opt/nested",
    "python3 -c 'import asyncio, ctypes, json, subprocess, tomllib, libvirt'",
)
"""The commands of each variant before it is frozen, as the first of each costs seconds."""


def boot_of(variant: Variant) -> Boot:
    """Return the files and words that this variant's machine starts from."""
    built = image.build(variant.release)
    return Boot(
        kernel=built / f"vmlinuz-{variant.kernel}",
        initrd=built / f"initrd-{variant.kernel}",
        append=f"lab.init={variant.init} {variant.append}".strip(),
    )


@memoised
def layers(variant: Variant) -> list[Path]:
    """The directories that a server of this variant needs, the one to restore from first."""
    base = cache.entry("frozen", _base_key(variant), lambda into: _fill_base(variant, into))
    chain = [base, image.build(variant.release), qemu.unpacked()]
    source = project.source_key()
    if source is not None:
        code = cache.digest(HERE / "project.py", HERE / "frozen.py")
        key = f"{variant.name}-{cache.key_of(base.name, source, code)}"
        chain.insert(0, cache.entry("server", key, lambda into: _fill_server(variant, base, into)))
    for layer in chain:
        name, dash, _ = layer.name.rpartition("-")  # a variant's, a release's, or nobody's
        cache.prune(layer.parent, prefix=name + dash, keep=KEEP)
    return chain


def _base_key(variant: Variant) -> str:
    code = cache.digest(*(HERE / name for name in ("frozen.py", "machine.py", "client.py")))
    where = str(cache.directory())  # overlays name their base by its path
    disk = image.key(variant.release)
    return f"{variant.name}-{cache.key_of(disk, repr(variant), WARM, code, where)}"


def _fill_base(variant: Variant, into: Path) -> None:
    directory = into / "run"
    disk = image.build(variant.release) / "root.img"
    machine = Machine.boot(boot_of(variant), disk=disk, directory=directory)
    freeze_after(machine, into, lambda agent: _warm(variant, agent))


def _fill_server(variant: Variant, base: Path, into: Path) -> None:
    python = image.python_of(variant.release)
    archive = project.archive(python)
    machine = Machine.restore(boot_of(variant), frozen=base, directory=into / "run")
    freeze_after(machine, into, lambda agent: _install(agent, archive, project.site(python)))


def freeze_after(machine: Machine, into: Path, prepare: Callable[[Agent], None]) -> None:
    """Prepare a machine once its agent answers, and freeze it; it ends in any case."""
    try:
        agent = Agent(machine.port)
        agent.wait(BOOT_SECONDS)
        prepare(agent)
        agent.run("sync").checked()
        machine.freeze(into)
    except BaseException as problem:
        machine.stop()
        kept = cache.directory() / "failures" / f"build-{time.strftime('%Y%m%d-%H%M%S')}"
        shutil.copytree(machine.directory, kept, ignore=shutil.ignore_patterns("disk*", "nvme*"))
        cache.say(f"the console is kept in {kept}: {type(problem).__name__}")
        raise
    shutil.copy(machine.console, into / "console.log")
    shutil.rmtree(machine.directory)


def _warm(variant: Variant, agent: Agent) -> None:
    """Do once what a server does only at first, then what this variant is about."""
    if variant.has_systemd:
        agent.run(WAIT_FOR_SYSTEMD, seconds=WARM_SECONDS).checked()
        agent.run("systemctl start libvirtd", seconds=WARM_SECONDS).checked()
    for command in (*WARM, *variant.warm, *WARM[1:2]):
        agent.run(command, seconds=WARM_SECONDS).checked()


def _install(agent: Agent, archive: bytes, site: PurePosixPath) -> None:
    """Unpack the project, compile it, run each program once, install the hook if it can be."""
    agent.run("tar -x -f - -C / --no-same-owner", stdin=archive).checked()
    agent.run(f"python3 -m compileall -q /{site}", seconds=WARM_SECONDS).checked()
    for program in ("kvmhooks", "kvm-launch"):
        agent.run([program, "--version"], seconds=WARM_SECONDS).checked()
    told = agent.run("kvmhooks --help").checked().stdout.splitlines()
    if any(line.split()[:1] == ["hooks"] for line in told):
        agent.run("kvmhooks hooks install", seconds=WARM_SECONDS).checked()
