"""``python -m kvmhooks`` is ``kvmhooks``."""

from __future__ import annotations

import sys

from kvmhooks.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
