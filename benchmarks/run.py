"""`make bench`: every benchmark, as ratios against a baseline measured in the same run.

These machines are noisy: each pair is measured in turns, and the best of each is compared.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main() -> int:
    """Run every module of this folder that is named ``bench_*.py``, or those that are named."""
    here = Path(__file__).parent
    names = sys.argv[1:] or sorted(path.stem for path in here.glob("bench_*.py"))
    sys.path.insert(0, str(here))
    for name in names:
        print(f"== {name}", flush=True)
        runpy.run_path(str(here / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
