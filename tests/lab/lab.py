"""A lab: one running server, and what a test can do with it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache, frozen, measure
from .client import Agent, Result
from .errors import LabError
from .machine import NVME, Machine
from .snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .variants import Variant

RESTORE_SECONDS = 120.0

PATIENCE = 3
"""The factor on the time that a test says a thing may take: its figures are for two idle CPUs, and
a limit is there to end what hangs.
"""

NETWORK = "52:54:00:00:02:00"
"""The address of the network device that ``join`` connects."""


class Lab:
    """One server; ``running`` makes it and ends it."""

    def __init__(self, variant: Variant, machine: Machine) -> None:
        """Use ``running``."""
        self.variant = variant
        self.machine = machine
        self.agent = Agent(machine.port)

    def run(self, command: str | Sequence[str], *, stdin: str = "", seconds: float = 60) -> Result:
        """Run a shell text or a program; see ``Result.checked``."""
        return self.agent.run(command, stdin=stdin.encode(), seconds=PATIENCE * seconds)

    def output(self, command: str | Sequence[str], *, stdin: str = "", seconds: float = 60) -> str:
        """Return the output of a command; it has to succeed."""
        return self.run(command, stdin=stdin, seconds=seconds).checked().stdout.strip()

    def put(self, path: str, content: str | bytes | Path, *, mode: int = 0o644) -> None:
        """Write a file in the lab, from a text, from bytes, or from a file of this machine."""
        data = content.read_bytes() if isinstance(content, Path) else content
        data = data.encode() if isinstance(data, str) else data
        text = f'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod {mode:o} "$0"'
        self.agent.run(["sh", "-c", text, path], stdin=data).checked()

    def kvmhooks(self, *arguments: str, seconds: float = 60) -> Result:
        """Run the project's command."""
        return self.run(["kvmhooks", *arguments], seconds=seconds)

    def kvm_launch(self, *arguments: str, seconds: float = 120) -> Result:
        """Run the project's launcher."""
        return self.run(["kvm-launch", *arguments], seconds=seconds)

    def snapshot(self) -> Snapshot:
        """The state of the whole host; ``before.diff(after)`` says what changed."""
        return Snapshot.parse(self._python("state.py", None, seconds=120))

    def switches(self, cpus: Sequence[int], seconds: float) -> list[measure.Ran]:
        """Return the tasks that ran on these CPUs during this time (the idle task is none)."""
        request = {"cpus": list(cpus), "seconds": seconds}
        return measure.parse_switches(self._python("switches.py", request, seconds=seconds + 60))

    def irqs(self, cpus: Sequence[int], seconds: float) -> list[measure.Interrupts]:
        """Return the interrupts that these CPUs took during this time."""
        request = {"cpus": list(cpus), "seconds": seconds}
        return measure.parse_irqs(self._python("irqs.py", request, seconds=seconds + 60))

    def plug_nvme(self) -> None:
        """Plug an SR-IOV NVMe controller in: 0000:42:00.0, node 1."""
        self.machine.qmp("device_add", **NVME)

    def join(self, other: Lab) -> tuple[str, str]:
        """Lay a wire between the two labs; the addresses of both on it come back."""
        path = str(self.machine.sockets / "wire")
        for lab, is_server in ((self, True), (other, False)):
            wire = {"type": "stream", "id": "wire", "server": is_server}
            lab.machine.qmp("netdev_add", **wire, addr={"type": "unix", "path": path})
            lab.machine.qmp("netdev_add", type="hubport", id="wire0", hubid=0, netdev="wire")
        addresses = ("10.77.0.1", "10.77.0.2")
        for lab, address in zip((self, other), addresses, strict=True):
            lab.output(_CONFIGURE.format(old=NETWORK, new=NETWORK[:-1] + address[-1], ip=address))
        return addresses

    def keep(self, into: Path) -> None:
        """Save what tells why a test failed."""
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.machine.console, into / "console.log")
        (into / "qemu.err").write_text(self.machine.complaints)
        try:
            told = self.run(_TELL, seconds=60).stdout
        except (LabError, OSError) as problem:
            told = f"the lab could not be asked any more: {problem}\n"
        (into / "journal.log").write_text(told)

    def _python(self, probe: str, request: object, *, seconds: float) -> str:
        source = (frozen.HERE / "probes" / probe).read_text()
        program = ["python3", "-I", "-S", "-", json.dumps(request)]  # it needs no packages
        return self.run(program, stdin=source, seconds=seconds).checked().stdout


@contextmanager
def running(variant: Variant, layers: list[Path] | None = None) -> Iterator[Lab]:
    """A fresh server of this variant, or one restored from these layers; ended on the way out."""
    with ExitStack() as stack:
        layers = layers or frozen.layers(variant)
        for layer in layers:
            stack.enter_context(cache.using(layer))
        parent = cache.directory() / "run"
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        directory = Path(tempfile.mkdtemp(prefix=f"{variant.name}-{os.getpid()}-", dir=parent))
        stack.callback(shutil.rmtree, directory)
        boot = frozen.boot_of(variant)
        machine = Machine.restore(boot, frozen=layers[0], directory=directory / "machine")
        stack.callback(machine.stop)
        lab = Lab(variant, machine)
        lab.agent.wait(RESTORE_SECONDS)
        yield lab


def is_any_running() -> bool:
    """Return whether some process on this machine has a lab of this cache."""
    return any(map(_is_owned, (cache.directory() / "run").glob("*-*-*")))


def _remove_abandoned(parent: Path) -> None:
    """Remove what labs left whose process was killed; the kernel has ended their QEMUs."""
    with cache.locked(parent / "abandoned.lock"):  # two workers find the same
        for directory in parent.glob("*-*-*"):
            if not _is_owned(directory):
                shutil.rmtree(directory)


def _is_owned(directory: Path) -> bool:
    return Path("/proc", directory.name.split("-")[1]).exists()


_CONFIGURE = """
for device in /sys/class/net/*; do
    [ "$(cat $device/address)" = {old} ] || continue
    ip link set ${{device##*/}} address {new} && ip link set ${{device##*/}} up &&
    ip address replace {ip}/24 dev ${{device##*/}} && exit 0
done
echo 'no device has the address {old}' >&2; exit 1
"""

_TELL = """
journalctl --no-pager --boot 2> /dev/null || dmesg
for log in /var/log/libvirt/*.log /var/log/libvirt/qemu/*.log; do
    [ -e "$log" ] && echo "==== $log" && cat "$log"
done; true
"""
