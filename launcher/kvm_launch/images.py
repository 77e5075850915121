"""Images that are made for a VM before its first start: empty, or over a base; never overwritten.

``qemu-img`` does it (https://www.qemu.org/docs/master/tools/qemu-img.html). Formats are given,
never probed: a guest could have written another header.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kvm_launch.user import User
from kvmhooks.errors import LaunchError, Problem, SpecError
from kvmhooks.spec import VmSpec
from kvmhooks.spec.model import Image
from kvmhooks.values import ByteSize

QEMU_IMG: Final = Path("/usr/bin/qemu-img")
SECONDS: Final = 60.0


def check(spec: VmSpec) -> None:
    """Raise ``SpecError`` with everything that keeps an image from being made, or used as it is."""
    problems = tuple(
        problem
        for index, image in enumerate(spec.image)
        for problem in _problems(image, f"image[{index}]")
    )
    if problems:
        raise SpecError(spec.source, problems)


def make(spec: VmSpec, user: User | None) -> list[Path]:
    """Make the images that are not there, for ``user``; give their paths.

    All or none: raises ``LaunchError``.
    """
    made: list[Path] = []
    try:
        for image in spec.image:
            if not image.path.exists():
                made.append(image.path)
                _create(image)
                if user is not None:
                    os.chown(image.path, user.uid, user.gid)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise LaunchError(f"{error.filename}: {error.strerror}") from error
        raise
    return made


def _problems(image: Image, at: str) -> Iterator[Problem]:
    if not QEMU_IMG.exists():
        yield Problem(at, f"no {QEMU_IMG}", "QEMU's tools: install qemu-utils")
    elif image.path.exists():
        yield from _existing(image, at)
    elif image.base is None and image.size is None:
        yield Problem(f"{at}.size", "nothing, and no base", "a size such as 20GiB")
    elif not image.path.parent.is_dir():
        yield Problem(f"{at}.path", f"no folder {str(image.path.parent)!r}", "one to make it in")
    elif image.base is not None:
        yield from _new(image, image.base, at)


def _existing(image: Image, at: str) -> Iterator[Problem]:
    """It is what is asked for, or nothing is done."""
    said = info(image.path, image.format)
    if isinstance(said, str):
        yield Problem(f"{at}.path", said, f"an image of format {image.format}")
        return
    size = int(said["virtual-size"])
    if image.size is not None and size != image.size:
        found = f"{ByteSize.kib(size // 1024)} in {str(image.path)!r}"
        yield Problem(f"{at}.size", found, f"{image.size}: see `qemu-img resize`")
    base = said.get("full-backing-filename")
    wanted = None if image.base is None else str(image.base)
    if base != wanted:
        found = "no base" if base is None else repr(base)
        expected = "none" if wanted is None else repr(wanted)
        yield Problem(f"{at}.base", f"{found} of {str(image.path)!r}", expected)


def _new(image: Image, base: Path, at: str) -> Iterator[Problem]:
    said = info(base, image.base_format)
    if isinstance(said, str):
        yield Problem(f"{at}.base", said, f"an image of format {image.base_format}")
    elif image.format != "qcow2":
        yield Problem(f"{at}.format", repr(image.format), '"qcow2": no other format has a base')
    elif image.size is not None and image.size < int(said["virtual-size"]):
        least = ByteSize.kib(int(said["virtual-size"]) // 1024)
        yield Problem(f"{at}.size", str(image.size), f"{least} or more: the base is as large")


def info(path: Path, kind: str, user: User | None = None) -> dict[str, Any] | str:
    """What ``qemu-img info`` says of an image to ``user``, or why it says nothing.

    Raises ``LaunchError`` when it does not answer.
    """
    done = _run("info", "--output=json", "--force-share", "-f", kind, str(path), user=user)
    if done.returncode != 0:
        return done.stderr.strip().removeprefix("qemu-img: ").splitlines()[0]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _create(image: Image) -> None:
    words = ["create", "-q", "-f", image.format]
    if image.base is not None:
        words += ["-b", str(image.base), "-F", image.base_format]
    words.append(str(image.path))
    if image.size is not None:
        words.append(str(int(image.size)))
    done = _run(*words)
    if done.returncode != 0:
        raise LaunchError(f"{image.path}: {done.stderr.strip().removeprefix('qemu-img: ')}")


def _run(*words: str, user: User | None = None) -> subprocess.CompletedProcess[str]:
    who: dict[str, Any] = {}
    if user is not None:
        who = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    try:
        return subprocess.run(
            [QEMU_IMG, *words], capture_output=True, text=True, check=False, timeout=SECONDS,
            stdin=subprocess.DEVNULL, env={"LC_ALL": "C"}, **who,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{words[-1]}: {QEMU_IMG}: {error}") from error
