"""``vm.toml``: read, structured, and checked as a whole."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import attrs

from kvmhooks import files
from kvmhooks.errors import Problem, SpecError
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.profiles import with_profile
from kvmhooks.spec.structure import Unsuitable, structure

MAX_BYTES = 1 << 20
"""A VM's description is a page or two; more than this is some other file."""


MAX_DOTS = 500
"""In one line: ``tomllib`` takes the square of the parts of a dotted key."""


def load_vm(path: str | os.PathLike[str]) -> VmSpec:
    """Read the VM that the file ``path`` describes.

    Paths in it are relative to its folder. Raises ``SpecError`` with every problem at once, each
    with its place.
    """
    file = Path(path).absolute()
    try:
        content = files.read(file, MAX_BYTES, pipe_seconds=files.PIPE_SECONDS)
    except files.IrregularError as error:
        raise _refused(file.name, "", error.kind, "a regular file") from error
    except OSError as error:
        raise _refused(file.name, "", error.strerror or str(error), "a readable file") from error
    if len(content) > MAX_BYTES:
        raise _refused(file.name, "", f"more than {MAX_BYTES} bytes", "a VM's description")
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise _refused(file.name, "", f"a byte that is not UTF-8 ({error})", "TOML") from error
    return parse_vm(text, folder=file.parent.resolve(), source=file.name)


def parse_vm(text: str, *, folder: Path, source: str = "vm.toml") -> VmSpec:
    """Read a VM from TOML ``text`` whose relative paths start at ``folder``.

    ``source`` names the text in messages. Raises ``SpecError``.
    """
    dots = max(line.count(".") for line in text.split("\n"))
    if dots > MAX_DOTS:
        raise _refused(source, "", f"a line with {dots} dots", f"at most {MAX_DOTS}")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
        raise _refused(source, "", str(error), "TOML") from error
    document, applied = with_profile(document)
    try:
        spec = attrs.evolve(structure(document, folder), source=source, applied=applied)
    except Unsuitable as error:
        raise SpecError(source, error.problems) from error
    problems = tuple(inconsistencies(spec))
    if problems:
        raise SpecError(source, problems)
    return spec


def _refused(source: str, at: str, found: str, expected: str) -> SpecError:
    return SpecError(source, (Problem(at, found, expected),))
