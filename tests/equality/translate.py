"""libvirt's own translation of domain XML into QEMU's arguments, as a process.

It reads a JSON text (the XML) a line on standard input and answers with a line of JSON: the command
line as one text, or what libvirt has against it. It runs in a mount namespace of its own: there
both sizes of huge pages have a mount, since libvirt wants one (nothing is allocated by that), and
the host seems to have as many NUMA nodes as any of the tests': libvirt refuses a node that is not
there.

``python3 translate.py FOLDER`` where everything of libvirt's is below FOLDER (``qemu:///embed``,
https://libvirt.org/drvqemu.html#embedded-driver): no daemon is asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PAGES = ("2M", "1G")
NODES = 8
SYSFS = Path("/sys/devices/system/node")


def main(folder: Path) -> None:
    """Answer until the standard input ends."""
    _pretend_nodes(folder / "nodes")
    import libvirt  # libnuma looks for nodes when it is loaded

    mounts = [folder / f"pages-{size}" for size in PAGES]
    for size, mount in zip(PAGES, mounts, strict=True):
        mount.mkdir()
        options = ("-t", "hugetlbfs", "-o", f"pagesize={size}")
        subprocess.run(["mount", *options, "none", str(mount)], check=True)
    configuration = folder / "root" / "etc" / "qemu.conf"
    configuration.parent.mkdir(parents=True)
    listed = ", ".join(json.dumps(str(mount)) for mount in mounts)
    configuration.write_text(
        f'hugetlbfs_mount = [{listed}]\nsecurity_driver = "none"\nnamespaces = []\n'
        'user = "root"\ngroup = "root"\n'  # QEMU is asked what it can, and the folder is root's
    )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(libvirt,), daemon=True).start()
    connection = libvirt.open(f"qemu:///embed?root={folder / 'root'}")
    for line in sys.stdin:
        xml = json.loads(line)
        started = time.perf_counter()
        try:
            answer: dict[str, object] = {"argv": connection.domainXMLToNative("qemu-argv", xml, 0)}
        except libvirt.libvirtError as error:
            answer = {"error": str(error)}
        answer["seconds"] = time.perf_counter() - started
        print(json.dumps(answer), flush=True)


def _pretend_nodes(folder: Path) -> None:
    """Nodes without CPUs beside the real one, in this mount namespace only."""
    names = ("cpulist", "cpumap", "distance", "meminfo")
    real = {name: (SYSFS / "node0" / name).read_text() for name in names}
    for node in range(NODES):
        made = folder / f"node{node}"
        made.mkdir(parents=True)
        distances = " ".join("10" if other == node else "20" for other in range(NODES))
        files = {**real, "distance": f"{distances}\n"}
        if node:
            files |= {"cpulist": "\n", "cpumap": "0\n"}
            files["meminfo"] = real["meminfo"].replace("Node 0", f"Node {node}")
        for name, text in files.items():
            (made / name).write_text(text)
    for name in ("online", "possible", "has_memory", "has_normal_memory"):
        (folder / name).write_text(f"0-{NODES - 1}\n")
    subprocess.run(["mount", "--bind", folder, SYSFS], check=True)


def _run_events(libvirt: Any) -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
