"""``vm.toml``: read, structured, and checked as a whole."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import attrs

from kvmhooks import files
from kvmhooks.errors import Problem, SpecError
from kvmhooks.spec.consistency import inconsistencies
from kvmhooks.spec.enabling import is_off, unenabled
from kvmhooks.spec.model import VmSpec
from kvmhooks.spec.profiles import with_profile, without
from kvmhooks.spec.structure import Unsuitable, structure

MAX_BYTES = 1 << 20
"""A VM's description is a page or two; more than this is some other file."""


MAX_DOTS = 500
"""In one line: ``tomllib`` takes the square of the parts of a dotted key."""


def load_vm(path: str | os.PathLike[str]) -> VmSpec:
    """Read the VM that the file ``path`` describes.

    Paths in it are relative to its folder. Raises ``SpecError`` with every problem at once, each
    with its place, in the file as ``path`` names it.
    """
    file, source = Path(path).absolute(), os.fspath(path)
    try:
        content = files.read(file, MAX_BYTES, pipe_seconds=files.PIPE_SECONDS)
    except files.IrregularError as error:
        raise _refused(source, "", error.kind, "a regular file") from error
    except OSError as error:
        raise _refused(
            source, "", error.strerror or type(error).__name__, "a readable file"
        ) from error
    if len(content) > MAX_BYTES:
        raise _refused(source, "", f"more than {MAX_BYTES} bytes", "a VM's description")
    try:
        text = content.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise _refused(source, "", f"a byte that is not UTF-8 ({error})", "TOML") from error
    return parse_vm(text, folder=file.parent.resolve(), source=source)


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
    try:
        return _described(document, folder, source)
    except Unsuitable as error:
        raise SpecError(source, error.problems) from error


def _described(document: Mapping[str, Any], folder: Path, source: str) -> VmSpec:
    """Return the VM of a document, with its profile under it. Raises ``Unsuitable``.

    A profile's default gives way to the file where it would do nothing: the file has switched off
    what it is of.
    """
    made, applied = with_profile(dict(document))
    left_out: tuple[str, ...] = ()
    while True:
        spec = attrs.evolve(
            structure(made, folder), source=source, applied=applied, left_out=left_out
        )
        idle = {problem.at: problem for problem in unenabled(spec, made)}
        idle |= {
            default.at: Problem(default.at, "nothing", key)
            for default in applied
            for key in default.beside
            if is_off(attrgetter(key)(spec))
        }
        given = [default for default in applied if default.at in idle]
        if not given:
            break
        made = without(made, *(default.at for default in given))
        applied = tuple(default for default in applied if default not in given)
        left_out += tuple(
            f"profile {spec.profile}: {at} is left out: it needs {idle[at].expected}"
            for at in (default.at for default in given)
        )
    problems = tuple(inconsistencies(spec, made))
    if problems:
        raise Unsuitable(tuple(_blamed(problems, spec, made, folder)))
    return spec


def _blamed(
    problems: Sequence[Problem], spec: VmSpec, document: dict[str, Any], folder: Path
) -> Iterator[Problem]:
    """Yield the problems, each with the default of the profile without which it is none."""
    by: dict[Problem, str] = {}
    for default in spec.applied:
        other = without(document, default.at)
        try:
            left = set(inconsistencies(structure(other, folder), other))
        except Unsuitable:
            continue
        by |= {each: default.at for each in problems if each not in left and each not in by}
    for problem in problems:
        found = problem.found
        if problem in by:
            found += f", with {by[problem]} of profile {spec.profile}"
        yield Problem(problem.at, found, problem.expected)


def _refused(source: str, at: str, found: str, expected: str) -> SpecError:
    return SpecError(source, (Problem(at, found, expected),))
