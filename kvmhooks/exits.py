"""The end of a command: its own exit code, or one message for what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from kvmhooks.errors import KvmhooksError, OutputError
from kvmhooks.output import plain

DRIFT: Final = 5

CODES: Final = (
    (0, "done", "done; of kvm-launch: the guest powered off, and all was as planned"),
    (1, "refused", "refused, and nothing was changed"),
    (2, "usage", "the command line is not as expected"),
    (
        3,
        "failed",
        "QEMU or libvirt failed or did not answer; of kvm-launch: not all was as planned",
    ),
    (4, "not restored", "the host could not be restored completely"),
    (DRIFT, "drift", "of kvmhooks status: somebody else has changed what VMs hold of the host"),
)
"""Every exit code of both commands: its name, and its meaning. ``KvmhooksError`` has those of
errors."""


def told_codes() -> str:
    """Return the table for a person, a line for each code."""
    return "".join(f"  {code}  {meaning}\n" for code, _, meaning in CODES)


def exit_code_of(command: Callable[[], int], *, interrupted: str) -> int:
    """Run a command to its exit code.

    An error of ours is its message on stderr and its own code. ``interrupted`` is said when Ctrl-C
    ends the command, with code 1.
    """
    with plain():
        try:
            return _printed(_ended(command, interrupted))
        except SystemExit as end:  # argparse has printed a help
            sys.exit(_printed(end.code if isinstance(end.code, int) else 0))


def _ended(command: Callable[[], int], interrupted: str) -> int:
    try:
        return command()
    except KvmhooksError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has gone
        return 1
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python 3.11 raises the latter from one that comes while a module makes its classes.
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):
            raise
        print(interrupted, file=sys.stderr)
        return 1


def _printed(code: int) -> int:
    """Give the exit code of a command whose output is still to be written: no 0 if it cannot be."""
    try:
        sys.stdout.flush()
    except OutputError as error:
        print(error, file=sys.stderr)
        return code or error.exit_code
    except BrokenPipeError:
        return code or 1
    return code
