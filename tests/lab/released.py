"""The version that was released before this one, and the way from it to this one.

Its wheel is kept in ``releases`` (see ``README.md`` there). It is installed in the place where this
one is then put, as `pip install` would: running programs have their files replaced.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import frozen, image, project
from .command import run

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from .lab import Lab
    from .variants import Variant

WHEEL = frozen.HERE / "releases" / "a92f6b5" / "kvmhooks-0.1.0-py3-none-any.whl"

NEEDS = ("qemu.qmp>=0.0.3",)
"""A requirement that the image does not have: this version does without."""


def layers(variant: Variant) -> list[Path]:
    """Return the directories that a server without the project needs: this version's is on top."""
    return frozen.layers(variant)[1:]


def install(lab: Lab) -> None:
    """Install the version before, with what it needs."""
    site = project.site(image.python_of(lab.variant.release))
    lab.agent.run(f"tar -x -f - -C /{site} --no-same-owner", stdin=_needs()).checked()
    _replace(lab, project._laid_out(WHEEL, site), site)


def upgrade(lab: Lab) -> None:
    """Replace what is installed by this version."""
    python = image.python_of(lab.variant.release)
    _replace(lab, project.archive(python), project.site(python))


def _replace(lab: Lab, archive: bytes, site: PurePosixPath) -> None:
    """Remove the modules of the version that is there with what was compiled of them, as pip does.

    The rest of a wheel is in both, under the same names.
    """
    lab.output(f"cd /{site} && rm -rf kvmhooks kvm_launch kvmhooks-*.dist-info")
    lab.agent.run("tar -x -f - -C / --no-same-owner", stdin=archive).checked()


def _needs() -> bytes:
    """Return what is needed besides, from this machine's own pip sources, as a tar archive."""
    data = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="needs-") as directory:
        words = ["--quiet", "--no-deps", "--no-compile", "--target", directory, *NEEDS]
        run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *words])
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.add(directory, arcname=".")
    return data.getvalue()
