"""How a command ends: with its own exit code, or one message for what went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from kvmhooks.errors import KvmhooksError


def exit_code_of(command: Callable[[], int], *, interrupted: str) -> int:
    """Run a command to its exit code.

    An error of ours is its message on stderr and its own code. ``interrupted`` is said when Ctrl-C
    ends the command, with code 1.
    """
    try:
        return command()
    except KvmhooksError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone. What is still in the buffer must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python 3.11 raises the latter from one that comes while a module makes its classes.
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):
            raise
        print(interrupted, file=sys.stderr)
        return 1
