"""The tests that need no service, on the Pythons and libraries of Debian 12, 13 and sid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.packages import chroots
from tests.packages.chroots import Chroot
from tests.tools.export import export

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(chroots.lacking()), reason=chroots.lacking() or "-"),
]

PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13", "sid": "3.14"}

LIBRARIES: Final = (
    *("attr", "cattr", "lxml", "pyudev", "rich", "pycdlib", "libvirt", "pyroute2"),
    *("jsonschema", "pytest", "hypothesis", "setuptools"),
)
PROGRAMS: Final = ("qemu-system-x86", "qemu-utils", "binutils", "iproute2", "util-linux", "git")
NEEDS: Final = ("python3", *(f"python3-{name}" for name in LIBRARIES), *PROGRAMS)

PARTS: Final = {
    "unit": ("tests/unit", "tests/processes"),
    "laws": ("tests/laws", "tests/golden", "tests/house"),
}
SECONDS: Final = 900
"""For one part, which takes some minutes where nothing else runs."""


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("suite", PYTHONS)
def test_the_tests_pass(suite: str, part: str, tmp_path: Path) -> None:
    """With that Debian's Python, libraries, QEMU and assembler, as anywhere."""
    shared = tmp_path / "shared"
    export(shared / "source")
    chroot = Chroot(chroots.system(suite, NEEDS), tmp_path / "layer", shared)
    assert chroot.output("python3 --version").startswith(f"Python {PYTHONS[suite]}.")
    words = f"python3 -m pytest -q -p no:cacheprovider --durations=5 {' '.join(PARTS[part])}"
    script = f"cd /mnt/source; HYPOTHESIS_EXAMPLES=5 CI=true {words}"
    done = chroot.run(script, seconds=SECONDS)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    assert re.search(r"^\d{3,} passed", done.stdout, re.MULTILINE)
