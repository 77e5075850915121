"""The probe under the name by which a supervisor of a92f6b5 finds it after an upgrade."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WHEEL = ROOT / "tests/lab/releases/a92f6b5/kvmhooks-0.1.0-py3-none-any.whl"

SUPERVISOR = """\
import sys
from pathlib import Path
wheel, root, emulator = sys.argv[1:]
sys.path[:] = [wheel, *(path for path in sys.path if path != root)]
import kvmhooks.live.accel, kvmhooks.live.rundir, kvmhooks.live.verdict, kvmhooks.spec.model
assert wheel in kvmhooks.live.accel.__file__
kvmhooks.__path__[:] = [f"{root}/kvmhooks"]  # another version takes the place of its package
kvmhooks.live.__path__[:] = [f"{root}/kvmhooks/live"]
from kvmhooks.live.probe import probe
verdict = probe(Path(emulator))
print(verdict.is_usable, verdict.is_lasting, verdict.evidence)
"""


def test_a_supervisor_of_a92f6b5_still_finds_the_probe(tmp_path: Path) -> None:
    """It looks for it only when its VM starts again and QEMU is another one by then."""
    emulator = tmp_path / "qemu"
    emulator.write_text("#!/bin/sh\necho no KVM here >&2\nexit 1\n")
    emulator.chmod(0o755)
    words = [sys.executable, "-c", SUPERVISOR, str(WHEEL), str(ROOT), str(emulator)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    told = "False False QEMU could not start a probe guest: no KVM here\n"
    assert (done.stdout, done.stderr) == (told, "")
