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
    """Return a command's exit code, and what it writes."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    told = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(told):
        try:
            code = main(words)
        except SystemExit as error:
            code = int(str(error.code))
        output.flush()
    return code, output.buffer.getvalue().decode(), told.getvalue()


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
    report = {
        "host": run(kvmhooks, ["host", "--root", host]),
        "host --json": run(kvmhooks, ["host", "--root", host, "--json"]),
        "schema": run(kvmhooks, ["schema"]),
        "profiles": run(kvmhooks, ["profiles", "show", "realtime"]),
    }
    for vm in sorted(map(str, folder.glob("*.toml"))):
        for verb in ("plan", "xml", "argv", "claim"):
            report[f"{verb} {vm}"] = run(kvmhooks, [verb, vm, "--host", host])
        report[f"launch {vm}"] = run(kvm_launch, [vm, "--print", "argv", "--host", host])
    for domain in sorted(map(str, folder.glob("*.xml"))):
        report[f"import {domain}"] = run(kvmhooks, ["import", domain])
        report[f"tune {domain}"] = run(kvmhooks, ["tune", domain, "--host", host])
        report[f"diff {domain}"] = run(kvmhooks, ["tune", domain, "--host", host, "--diff"])
    image = importlib.import_module("kvm_launch.prepare.cloud_init").image(
        {"user-data": b"x", "meta-data": b"y"}
    )
    print(json.dumps({"modules": imported, "said": report, "seed": len(image)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
