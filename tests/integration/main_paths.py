"""The main paths of both commands in one process: what each command says and returns, as JSON.

``python main_paths.py FOLDER``, with a host in ``FOLDER/host``, VMs ``*.toml``, domains ``*.xml``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> tuple[int, str, str]:
    """What a command returns, and what it writes."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    told = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        try:
            code = main(words)
        except SystemExit as error:
            code = int(str(error.code))
        said.flush()
    return code, said.buffer.getvalue().decode(), told.getvalue()


def modules() -> list[str]:
    """Every module, imported."""
    names = []
    for package in ("kvmhooks", "kvm_launch"):
        found = importlib.import_module(package)
        names += [each.name for each in pkgutil.walk_packages(found.__path__, f"{package}.")]
    for name in names:
        importlib.import_module(name)
    return names


def main(folder: Path) -> None:
    """Print all of it."""
    imported = modules()
    kvmhooks = importlib.import_module("kvmhooks.cli.main").main
    kvm_launch = importlib.import_module("kvm_launch.command").main
    host = str(folder / "host")
    said = {
        "host": run(kvmhooks, ["host", "--root", host]),
        "host --json": run(kvmhooks, ["host", "--root", host, "--json"]),
        "schema": run(kvmhooks, ["schema"]),
        "profiles": run(kvmhooks, ["profiles", "show", "realtime"]),
    }
    for vm in sorted(map(str, folder.glob("*.toml"))):
        for verb in ("plan", "xml", "argv", "claim"):
            said[f"{verb} {vm}"] = run(kvmhooks, [verb, vm, "--host", host])
        said[f"launch {vm}"] = run(kvm_launch, [vm, "--print", "argv", "--host", host])
    for domain in sorted(map(str, folder.glob("*.xml"))):
        said[f"import {domain}"] = run(kvmhooks, ["import", domain])
        said[f"tune {domain}"] = run(kvmhooks, ["tune", domain, "--host", host])
        said[f"diff {domain}"] = run(kvmhooks, ["tune", domain, "--host", host, "--diff"])
    image = importlib.import_module("kvm_launch.seed").image({"user-data": b"x", "meta-data": b"y"})
    print(json.dumps({"modules": imported, "said": said, "seed": len(image)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
