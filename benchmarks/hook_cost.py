"""The cost of the hook, as ratios within one run; the exit code is 1 when one is exceeded.

All times are processor time, ours and our children's: other work on the machine does not count.
Whole processes are compared, as libvirt starts them:

- a call for a guest that is none of ours with a bare interpreter;
- `prepare` and `start` on 512 CPUs and 2,048 interrupts with an interpreter that runs a bare loop
  over the files that they write: read, write, read back (and, for information, with the loop alone;
  the hook also reads each interrupt's effective affinity, which the loop does not);
- all five calls of a VM's life on a host of this machine's size with vfio-isolate's two. It is
  installed from PyPI into an environment of its own, and works on the tree that our hook works on:
  that is mounted over ``/proc/irq``, which is all that it touches, in a mount namespace that ends
  with it, so that nothing of this machine is changed;
- and the most memory that a call takes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from kvmhooks.isolate.claims.domain_xml import read_claim
from kvmhooks.isolate.hook import installation
from kvmhooks.isolate.registry.dry_run import rehearse
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm

ROUNDS = 15
MEMORY_MIB = 30
PYTHON = ("/usr/bin/python3", "-I", "-S")
RIVAL = "vfio-isolate==0.5.2"
LIFE = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
)
LOOP = """
import os, sys
for line in open(sys.argv[1]):
    path, value = line.rstrip("\\n").split("\\t")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDONLY):
        descriptor = os.open(path, flags)
        if flags == os.O_WRONLY:
            os.write(descriptor, value.encode())
        else:
            os.read(descriptor, 4096)
        os.close(descriptor)
"""
"""A bare loop: what each change of a file takes."""

ITS_LIFE = """
import json, resource, subprocess, sys
program, cpu, undo, rounds = sys.argv[1:]
calls = ([program, "-u", undo, "irq-affinity", "mask", f"C{cpu}"], [program, "restore", undo])
best, seen = float("inf"), []
for _ in range(int(rounds)):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for call in calls:
        subprocess.run(call, check=True, capture_output=True)
        seen.append(open("/proc/irq/0/smp_affinity_list").read().strip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
print(json.dumps([best, seen[:2]]))
"""
"""vfio-isolate's two calls, measured where the copy stands for ``/proc/irq``."""

MOST_MEMORY = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdin=sys.stdin)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Asked by a small process: a child's maximum begins with that of the process it came from."""


def seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the quickest of several rounds: slower ones had somebody else's work beside them."""
    best = float("inf")
    for _ in range(rounds):
        before = _spent()
        work()
        best = min(best, _spent() - before)
    return best


def _spent() -> float:
    """Return processor seconds of this process and of the children that have ended."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def call(hook: Path, root: Path, xml: bytes, *operation: str) -> None:
    """Call the hook once, as libvirt does."""
    subprocess.run(
        [str(hook), "--root", str(root), "vm", *operation, "-"],
        input=xml, check=True, capture_output=True,
    )  # fmt: skip


def stranger(hook: Path) -> tuple[float, float]:
    """Return the times of a guest without our metadata, and of a bare interpreter."""
    xml = b"<domain type='kvm'><name>s</name></domain>"
    ours = bare = float("inf")
    for _ in range(40):
        ours = min(ours, seconds(lambda: _run(xml, hook, "s", "prepare", "begin", "-"), 1))
        bare = min(bare, seconds(lambda: _run(xml, *PYTHON, "-c", "pass"), 1))
    return ours, bare


def _run(stdin: bytes, *words: object) -> None:
    subprocess.run([str(word) for word in words], input=stdin, check=True)


def large_host(hook: Path, scratch: Path) -> tuple[float, float, float, float]:
    """Return `prepare`, `start`, an interpreter with a bare loop, the loop; MiB of `start`."""
    root = scratch / "large"
    plant(Kernel("plain", 512, 2_048), root)
    vm = Vm("vm", CpuSet(range(64, 128)), CpuSet({0, 1}))
    claim = read_claim(vm.xml)
    assert claim is not None
    writes = [write for write in rehearse(claim, str(root)) if write.phase in {"prepare", "start"}]
    files = {str(root) + write.path: write.value for write in writes if write.path.startswith("/")}
    narrow, wide = scratch / "narrow", scratch / "wide"
    narrow.write_text("".join(f"{path}\t{value}\n" for path, value in files.items()))
    wide.write_text("".join(f"{path}\t{Path(path).read_text()}" for path in files))
    program = compile(LOOP, "loop", "exec")
    best = loop = alone = float("inf")
    for _ in range(ROUNDS):
        best = min(best, seconds(lambda: _start(hook, root, vm.xml), 1))
        call(hook, root, vm.xml, "release", "end")
        loop = min(loop, seconds(lambda: _run(b"", *PYTHON, "-c", LOOP, narrow), 1))
        sys.argv[1:] = [str(wide)]
        alone = min(alone, seconds(lambda: exec(program, {}), 1))  # noqa: S102 -- our own, above
    call(hook, root, vm.xml, "prepare", "begin")
    (scratch / "xml").write_bytes(vm.xml)
    words = [str(hook), "--root", str(root), "vm", "start", "begin", "-"]
    with (scratch / "xml").open() as xml:
        kib = subprocess.run(
            [*PYTHON, "-c", MOST_MEMORY, *words], stdin=xml, check=True, capture_output=True
        ).stdout
    return best, loop, alone, int(kib) / 1024


def _start(hook: Path, root: Path, xml: bytes) -> None:
    call(hook, root, xml, "prepare", "begin")
    call(hook, root, xml, "start", "begin")


def whole_life(hook: Path, scratch: Path) -> tuple[float, float]:
    """Return all five calls on a host of this machine's size, and vfio-isolate's two."""
    count = max(os.cpu_count() or 2, 2)
    irqs = sum(path.name.isdigit() for path in Path("/proc/irq").iterdir())
    root = scratch / "small"
    plant(Kernel("plain", count, irqs), root)
    vm = Vm("vm", CpuSet({count - 1}), CpuSet({0}))

    def life() -> None:
        for operation in LIFE:
            call(hook, root, vm.xml, *operation)

    venv.create(scratch / "rival", with_pip=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([scratch / "rival/bin/pip", "install", *quiet, RIVAL], check=True)
    ours = seconds(life)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
         'mount --bind "$1" /proc/irq; shift; exec "$@"', "sh", root / "proc/irq",
         *PYTHON, "-c", ITS_LIFE, scratch / "rival/bin/vfio-isolate", str(count - 1),
         scratch / "undo", str(ROUNDS)],
        check=True, capture_output=True,
    )  # fmt: skip
    its, (narrowed, restored) = json.loads(done.stdout)
    online = CpuSet(range(count))
    assert (narrowed, restored) == (str(online - CpuSet({count - 1})), str(online))
    return ours, its


def main() -> int:
    """Measure, print, judge."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        scratch = Path(directory)
        found = installation.install(str(scratch), libvirt=(9, 0, 0))
        hook = scratch / found.path.lstrip("/")
        ours, loop, alone, mib = large_host(hook, scratch)
        rows = [
            ("a stranger's call / a bare interpreter", *stranger(hook), 1.5),
            ("prepare + start / an interpreter with a bare loop", ours, loop, 3.0),
            ("five calls / vfio-isolate's two", *whole_life(hook, scratch), 1.0),
        ]
    exceeded = mib > MEMORY_MIB
    for what, measured, other, most in rows:
        exceeded |= measured / other > most
        print(f"{what}: {measured * 1e3:.1f} ms / {other * 1e3:.1f} ms", end=" = ")
        print(f"{measured / other:.2f} (<= {most})")
    print(f"prepare + start / the loop alone: {ours / alone:.2f}")
    print(f"memory of start: {mib:.1f} MiB (<= {MEMORY_MIB})")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
