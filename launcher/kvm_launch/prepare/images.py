"""Images that are made for a VM before its first start: empty, or over a base; never overwritten.

``qemu-img`` does it (https://www.qemu.org/docs/master/tools/qemu-img.html). Formats are given,
never probed: a guest could have written another header.
"""

from __future__ import annotations

import json
import os
import reprlib
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvm_launch.prepare import paths
from kvmhooks import bounded
from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.values import ByteSize

if TYPE_CHECKING:
    from kvm_launch.prepare.user import User
    from kvmhooks.spec import VmSpec
    from kvmhooks.spec.model import Image

QEMU_IMG: Final = Path("/usr/bin/qemu-img")
SECONDS: Final = 60.0

_READABLE: Final = {"file", "block device"}


def check(spec: VmSpec, user: User | None) -> None:
    """Raise ``SpecError`` with everything that keeps an image from being made, or used as it is.

    Each is looked at by who opens it for a QEMU that is ``user`` (``kvm_launch.prepare.paths``).
    """
    problems = tuple(
        problem
        for index, image in enumerate(spec.image)
        for problem in _problems(image, f"image[{index}]", user)
    )
    if problems:
        raise SpecError(spec.source, problems)


def make(spec: VmSpec, user: User | None) -> list[Path]:
    """Make the images that are not there, for ``user``; give their paths.

    All or none: raises ``LaunchError``.
    """
    made: list[Path] = []
    try:
        with ExitStack() as undo:
            for image in spec.image:
                (seen,) = paths.look([image.path], paths.opener(image.path, user))
                if seen.kind == "nothing":
                    with paths.blank(image.path, user) as blank:
                        _create(image, blank, user)
                    undo.callback(paths.remove, image.path, user)
                    made.append(image.path)
            undo.pop_all()
    except OSError as error:
        raise LaunchError(f"{error.filename}: {error.strerror}") from error
    return made


def _problems(image: Image, at: str, user: User | None) -> Iterator[Problem]:
    """Say what keeps an image from being made, or from being used as it is."""
    opener = paths.opener(image.path, user)
    seen, folder = paths.look([image.path, image.path.parent], opener)
    if not QEMU_IMG.exists():
        yield Problem(at, f"no {QEMU_IMG}", "QEMU's tools: install qemu-utils")
    elif seen.kind in _READABLE:
        yield from _existing(image, at, _reader(image, opener, user))
    elif seen.kind != "nothing":
        yield _unreadable(f"{at}.path", image.path, seen, f"an image of format {image.format}")
    elif image.base is None and image.size is None:
        yield Problem(f"{at}.size", "nothing, and no base", "a size such as 20GiB")
    elif folder.kind != "folder":
        yield Problem(f"{at}.path", f"no folder {str(image.path.parent)!r}", "one to make it in")
    elif not folder.may(os.W_OK | os.X_OK):
        found = f"no permission for {str(image.path.parent)!r}"
        yield Problem(f"{at}.path", found, "a folder to make it in")
    elif image.base is not None:
        yield from _new(image, image.base, at, user)


def _reader(image: Image, opener: User | None, user: User | None) -> User | None:
    """Return who reads an image: its user, but for a raw one, which says nothing of other files.

    A header of qcow2 has ``qemu-img info`` open what it names (CVE-2024-4467), and who writes to
    the image writes the header, wherever it is.
    """
    return opener if image.format == "raw" else user


def _existing(image: Image, at: str, reader: User | None) -> Iterator[Problem]:
    """Yield what is wrong with the image: it is what is asked for, or nothing is done."""
    known = info(image.path, image.format, reader)
    if isinstance(known, str):
        yield Problem(f"{at}.path", known, f"an image of format {image.format}")
        return
    size = int(known["virtual-size"])
    if image.size is not None and size != image.size:
        found = f"{ByteSize.kib(size // 1024)} in {str(image.path)!r}"
        yield Problem(f"{at}.size", found, f"{image.size}: see `qemu-img resize`")
    base = known.get("full-backing-filename")
    wanted = None if image.base is None else str(image.base)
    if base != wanted:
        found = "no base" if base is None else repr(base)
        expected = "none" if wanted is None else repr(wanted)
        yield Problem(f"{at}.base", f"{found} of {str(image.path)!r}", expected)


def _new(image: Image, base: Path, at: str, user: User | None) -> Iterator[Problem]:
    """Say what keeps an image from being made over its base, which QEMU opens as ``user``."""
    expected = f"an image of format {image.base_format}"
    (seen,) = paths.look([base], user)
    if seen.kind not in {*_READABLE, "nothing"}:  # of what is not there qemu-img tells
        yield _unreadable(f"{at}.base", base, seen, expected)
        return
    found = info(base, image.base_format, user)
    if isinstance(found, str):
        yield Problem(f"{at}.base", found, expected)
    elif image.format != "qcow2":
        yield Problem(f"{at}.format", repr(image.format), '"qcow2": no other format has a base')
    elif image.size is not None and image.size < int(found["virtual-size"]):
        least = ByteSize.kib(int(found["virtual-size"]) // 1024)
        yield Problem(f"{at}.size", str(image.size), f"{least} or more: the base is as large")


def _unreadable(at: str, path: Path, seen: paths.SeenPath, expected: str) -> Problem:
    what = {"denied": "no permission for", "folder": "a folder"}.get(seen.kind, "no regular file")
    return Problem(at, f"{what} {str(path)!r}", expected)


def info(path: Path, kind: str, user: User | None = None) -> dict[str, Any] | str:
    """Return what ``qemu-img info`` says of an image to ``user``, or why it says nothing.

    Raises ``LaunchError`` when it does not answer.
    """
    done = _run("info", "--output=json", "--force-share", "-f", kind, str(path), user=user)
    if done.returncode != 0:
        return _why(done)
    try:
        document: Any = json.loads(done.stdout)
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{path}: {QEMU_IMG}: found no JSON in its answer: {error}") from error
    wrong = next(_oddities(document), None)
    if wrong is not None:
        raise LaunchError(f"{path}: {QEMU_IMG}: its answer: {wrong}")
    return dict(document)


def _oddities(document: Any) -> Iterator[str]:
    """Say what qemu-img does not say of an image (``ImageInfo``, qapi/block-core.json).

    Its user could have had a hand in it.
    """
    if not isinstance(document, dict):
        yield "found no object, expected one"
        return
    size = document.get("virtual-size")
    if type(size) is not int or not 0 <= size < 1 << 63:
        yield f"virtual-size: found {reprlib.repr(size)}, expected bytes"
    for key in ("backing-filename", "full-backing-filename", "backing-filename-format"):
        if not _is_name(document.get(key, "")):
            yield f"{key}: found {reprlib.repr(document[key])}, expected a name"
    special = document.get("format-specific", {})
    if not isinstance(special, dict) or not isinstance(special.get("data", {}), dict):
        yield f"format-specific: found {reprlib.repr(special)}, expected an object"


def _is_name(name: object) -> bool:
    """Return whether it is text that a path can be."""
    try:
        return isinstance(name, str) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _create(image: Image, blank: paths.Blank, user: User | None) -> None:
    """Have qemu-img make an image of an empty file.

    It does not open the base (``-u``), so that who makes the image need not be who may read that.
    """
    size = image.size
    if image.base is not None:
        found = info(image.base, image.base_format, user)
        if isinstance(found, str):
            raise LaunchError(f"{image.base}: {found}")
        size = size or found["virtual-size"]
    words = creation(image, blank.path, int(size or 0))
    done = _run(*words, user=blank.user, descriptors=blank.descriptors)
    if done.returncode != 0:
        raise LaunchError(f"{image.path}: {_why(done)}")


def creation(image: Image, path: str, size: int) -> list[str]:
    """Return qemu-img's words that make an image of ``size`` bytes at ``path``."""
    base = [] if image.base is None else ["-u", "-b", str(image.base), "-F", image.base_format]
    return ["create", "-q", "-f", image.format, *base, path, str(size)]


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the first line of what qemu-img says, or how it ended."""
    reason = done.stderr.decode(errors="replace").strip().removeprefix("qemu-img: ")
    return reason.splitlines()[0] if reason else f"qemu-img ended with {done.returncode}"


def _run(
    *words: str, user: User | None = None, descriptors: Sequence[int] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run qemu-img as ``user``. Raises ``LaunchError`` when it does not answer."""
    who: dict[str, Any] = {}
    if user is not None:
        who = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    try:
        return bounded.run(
            [QEMU_IMG, *words],
            seconds=SECONDS,
            who=who,
            environment={"LC_ALL": "C"},
            descriptors=descriptors,
        )
    except OSError as error:
        raise LaunchError(f"{words[-1]}: {QEMU_IMG}: {error.strerror}") from error
