"""Reading a large host, against a plain loop that opens and reads the very same files once.

A fake machine of 1,024 CPUs, 16 nodes, 64 L3s, 4,096 interrupts and 500 PCI devices. The promise is
that reading costs at most twice the loop, in less than 150 MiB, with no file opened twice.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from measure import in_turns, show

from kvmhooks.host import read
from kvmhooks.host.files.tree import Tree
from kvmhooks.host.read import read_tree
from tests.fakedevices import FakeIrq, FakePci
from tests.fakehost import FakeHost
from tests.watcher import Watcher

ROUNDS = 5
MOST = 2.0
"""Times the loop."""
MEMORY_MIB = 150


def main() -> None:
    """Print the figures; end with 1 where a promise is broken."""
    with tempfile.TemporaryDirectory(prefix="kvmhooks-bench-") as name:
        root = Path(name)
        write_large(root)
        counts = Counter(opened_files(root))
        best = in_turns(
            {
                "plain loop": lambda: _timed(lambda: _loop(counts)),
                "kvmhooks.host.read(root)": lambda: _timed(lambda: read(root)),
                "… of CPUs and nodes only": lambda: _timed(lambda: read(root, ("cpus", "nodes"))),
            },
            ROUNDS,
        )
        memory = peak_memory(root)
    show(best, "plain loop")
    twice = sum(count > 1 for count in counts.values())
    ratio = best["kvmhooks.host.read(root)"] / best["plain loop"]
    print(f"{len(counts)} files, {twice} of them opened twice; peak memory {memory:.0f} MiB")
    kept = ratio <= MOST and twice == 0 and memory < MEMORY_MIB
    print(f"at most {MOST} times the loop and {MEMORY_MIB} MiB: {'kept' if kept else 'BROKEN'}")
    if not kept:
        raise SystemExit(1)


def write_large(root: Path) -> None:
    """Write the tree."""
    addresses = [f"{at >> 8:04x}:{at & 255:02x}:00.0" for at in range(500)]
    devices = tuple(
        FakePci(address, node=at % 16, driver="nvme", iommu_group=at)
        for at, address in enumerate(addresses)
    )
    irqs = tuple(
        FakeIrq(
            at + 16,
            f"nvme{at % 500}q{at // 500 + 1}",
            affinity=str(at % 1024),
            effective=str(at % 1024),
            device=addresses[at % 500],
            node=at % 16,
            counts={at % 1024: at},
        )
        for at in range(4096)
    )
    FakeHost(
        packages=16,
        cores=32,
        threads=2,
        l3_cores=8,
        nodes=16,
        pci=devices,
        irqs=irqs,
        hugepages={2048: (512, 100), 1 << 20: (4, 0)},
    ).write(root)


def opened_files(root: Path) -> list[str]:
    """Return every file that read() opens, by where it really is, as often as it is opened."""
    watcher = Watcher(root)
    read_tree(Tree(root, recorder=watcher))
    return watcher.opened


def peak_memory(root: Path) -> float:
    """Return the most memory that a process needs which does nothing but read it, in MiB."""
    # Not getrusage: its maximum is inherited from the process that forked.
    script = (
        "import sys, kvmhooks.host as host; host.read(sys.argv[1]);"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, root], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return int(done.stdout) / 1024


def _timed(work: Callable[[], object]) -> float:
    """Return the CPU time that it takes, without the garbage of what ran before.

    Not the time by the clock: the files are in memory, so all the rest is waiting for others.
    """
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def _loop(files: Iterable[str]) -> None:
    for file in files:
        with open(file, "rb") as opened:  # noqa: PTH123 -- as quick as a loop can be
            opened.read()


if __name__ == "__main__":
    main()
