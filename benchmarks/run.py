"""`make bench`: every benchmark, as ratios against a baseline measured in the same run.

These machines are noisy: each pair is measured in turns, and the best of each is compared.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> int:
    """Run every benchmark of this folder, or those that are named; 1 when one broke its promise."""
    here = Path(__file__).parent
    names = sys.argv[1:] or [
        *sorted(path.stem for path in here.glob("bench_*.py")),
        "hook_cost",
    ]
    sys.path.insert(0, str(here))
    broken = 0
    for name in names:
        print(f"== {name}", flush=True)
        try:
            runpy.run_path(str(here / f"{name}.py"), run_name="__main__")
        except SystemExit as ended:
            broken |= bool(ended.code)
    return broken


if __name__ == "__main__":
    sys.exit(main())
