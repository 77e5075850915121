"""The hook as one self-contained file: no virtual environment can keep a VM from starting.

The file is a Python script: the text of ``fastpath.py``, which decides whether a call is any of our
business, and in comment lines everything else: the loader, the modules' texts, and the modules
compiled for the interpreter that will run them (the texts serve once that is upgraded). Comments
cost little to skip, so they are packed tightly, and each module is unpacked when it is imported:
libvirt waits. For the same reason the process ends at once (``os._exit``): to take an interpreter
apart costs a fifth of its start, and it has nothing left to do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import lzma
import subprocess
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from kvmhooks.errors import IsolationError
from kvmhooks.version import VERSION

NOT_BUNDLED: Final = {
    "kvmhooks.isolate.hook.__main__",
    "kvmhooks.isolate.hook.bundle",
    "kvmhooks.isolate.hook.installation",
    *(f"kvmhooks.isolate.{name}" for name in ("mediated", "sriov", "vf_settings")),
}
"""Modules that are no part of a call, and names for older supervisors, which run no bundle."""

HEADER: Final = "# kvmhooks {version}: the libvirt hook. Made by `kvmhooks hooks install`.\n"

_OF: Final = "# Of "
"""The beginning of the line that tells of which modules a file was made."""

_START: Final = """
import sys

chained = {chained!r}
planner = {planner!r}
options = sys.argv[1:2] != [] and sys.argv[1].startswith("--")
xml = None if options else read_xml()
status = 0
try:
    if options or chained or concerns(sys.argv[1:], xml):
        from binascii import a2b_base64
        from zlib import decompress

        with open(__file__, "rb") as file:
            *_, loader, text, code = file.read().split(b"\\n")[:-1]
        exec(decompress(a2b_base64(loader[2:])))
except BaseException as error:
    exec({failed!r})
os._exit(status)
"""
"""The end of the script proper."""

_FAILED: Final = """\
guest, *operation = sys.argv[1:3] or [""]
is_due = operation in (["prepare"], ["start"], ["started"]) and (MARK in xml or is_named(guest))
status = int(options or is_due)
try:
    os.write(2, f"kvmhooks: {__file__}: {error!r:.200}\\n".encode(errors="replace"))
except OSError:
    pass
"""
"""The end of a call whose last lines cannot be run: no VM of others is kept from starting."""

_LOADER: Final = """
import gc, marshal
from _frozen_importlib import spec_from_loader
from _frozen_importlib_external import MAGIC_NUMBER

class Bundled:
    def __init__(self):
        magic, packed = code[2:].split()
        if magic.decode() == MAGIC_NUMBER.hex():
            self.modules = marshal.loads(a2b_base64(packed))
        else:
            import json, lzma
            self.modules = json.loads(lzma.decompress(a2b_base64(text[2:])))

    def find_spec(self, name, path=None, target=None):
        if name in self.modules:
            return spec_from_loader(name, self, is_package=self.modules[name][0])

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        found = self.modules[module.__name__][1]
        if isinstance(found, str):
            found = compile(found, f"<{module.__name__}>", "exec", dont_inherit=True)
        else:
            found = marshal.loads(decompress(found))
        exec(found, module.__dict__)

if xml is not None:
    gc.disable()  # a call of libvirt's: soon the process ends
sys.meta_path.insert(0, Bundled())
from kvmhooks.isolate.hook import command
status = command(sys.argv[1:], xml, chained, planner)
"""
"""Finds the modules in the file's last lines and hands the call on."""

_COMPILER: Final = """
import json, marshal, sys, zlib
from importlib.util import MAGIC_NUMBER
def compiled(name, text):
    code = compile(text, f"<{name}>", "exec", dont_inherit=True, optimize=2)
    return zlib.compress(marshal.dumps(code), 9)
modules = json.load(sys.stdin)
found = {name: (is_package, compiled(name, text)) for name, (is_package, text) in modules.items()}
print(MAGIC_NUMBER.hex(), marshal.dumps(found).hex())
"""
"""Without docstrings and without the columns that tracebacks underline: less to unpack."""


def build(
    interpreter: str = "/usr/bin/python3", chained: str = "", planner: Sequence[str] = ()
) -> str:
    """Return the file's text, for an interpreter that is asked to compile it.

    ``chained`` is a script to be called after it, ``planner`` the words that run `kvmhooks`.

    Raises ``IsolationError`` when there is no such interpreter or it is too old.
    """
    text, code = _packed(interpreter, json.dumps(texts()))
    fastpath = (Path(__file__).parent / "fastpath.py").read_text()
    values = {"chained": chained, "planner": [*planner], "failed": _FAILED}
    start = _START
    for name, value in values.items():
        start = start.replace(f"{{{name}!r}}", repr(value))
    lines = (
        base64.b64encode(zlib.compress(_LOADER.encode(), 9)).decode(),
        text,
        code,
    )
    return "".join(
        (
            f"#!{interpreter} -IS\n",
            HEADER.format(version=VERSION),
            f"{_OF}{digest()}\n",
            fastpath,
            start,
            *(f"# {line}\n" for line in lines),
        )
    )


@cache
def _packed(interpreter: str, modules: str) -> tuple[str, str]:
    """Return the modules as they are and as an interpreter compiles them, each as a line.

    It takes seconds, once for all files that a process makes. Raises ``IsolationError``.
    """
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-X", "no_debug_ranges", "-c", _COMPILER],
            input=modules,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise IsolationError(f"{interpreter}: no such interpreter; name one that is") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise IsolationError(
            f"{interpreter}: found {last}, expected Python 3.11 or later"
        ) from error
    magic, code = done.stdout.split()
    text = base64.b64encode(lzma.compress(modules.encode())).decode()
    return text, f"{magic} {base64.b64encode(bytes.fromhex(code)).decode()}"


def texts() -> dict[str, tuple[bool, str]]:
    """Return (whether it is a package, its text) of every module that the hook may need.

    ``kvmhooks`` itself is empty here: its public names need what the hook must not depend on.
    """
    package = Path(__file__).parents[2]
    found: dict[str, tuple[bool, str]] = {"kvmhooks": (True, "")}
    shared = ("cpu_lists", "errors", "policy", "values", "version")
    paths = [package / f"{name}.py" for name in shared]
    for path in [*paths, *sorted((package / "isolate").rglob("*.py"))]:
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        if name not in NOT_BUNDLED:
            found[name] = (is_package, path.read_text())
    return found


def version_of(text: str) -> str | None:
    """Return the version that made a file, or None for a file that is none of ours."""
    start, _, end = HEADER.partition("{version}")
    lines = text.splitlines(keepends=True)[:2]
    if len(lines) < 2 or not lines[1].startswith(start) or not lines[1].endswith(end):
        return None
    return lines[1].removeprefix(start).removesuffix(end)


def digest() -> str:
    """Return what tells the modules from those of any other build, also of the same version."""
    return hashlib.sha256(json.dumps(texts()).encode()).hexdigest()


def digest_of(text: str) -> str:
    """Return the digest of the modules of which a file was made; empty for one that says none."""
    lines = text.split("\n", 4)[:4]
    return next((line.removeprefix(_OF) for line in lines if line.startswith(_OF)), "")
