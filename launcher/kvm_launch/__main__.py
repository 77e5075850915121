"""``python -m kvm_launch`` is ``kvm-launch``."""

from __future__ import annotations

import sys

from kvm_launch.command import main

if __name__ == "__main__":
    sys.exit(main())
