"""The choice of the form in which a person is told: by the command line, and where output goes."""

from __future__ import annotations

import os
import sys

from kvm_launch.options import LaunchOptions
from kvm_launch.tell.screen import Quiet, Screen


def screen_of(options: LaunchOptions) -> Screen:
    """Return the screen that suits the command line and where its output goes."""
    out = sys.stderr if options.is_json else sys.stdout
    if options.is_quiet:
        return Quiet(out)
    is_dumb = os.environ.get("TERM", "dumb") == "dumb"
    if is_dumb or not out.isatty():
        return Screen(out)
    from kvm_launch.tell.tables import Terminal

    return Terminal(out)
