"""``python3 -m kvmhooks.isolate.hook`` is the hook that libvirt runs."""

from __future__ import annotations

import sys

from kvmhooks.isolate.hook.entry import command

if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
