"""The hook as a program for us: ``--reconcile``, ``--follow KEY``, ``--settle``."""

from __future__ import annotations

from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def carry_out(
    root: str,
    arguments: list[str],
    planner: Sequence[str],
    reconcile: Callable[[str], int],
    write: Callable[[int, bytes], None],
) -> int:
    """Do what an option asks for, ``--root DIR`` behind it included; return the exit code.

    ``reconcile`` and ``write`` are those of ``entry``, which loads this for an option only.
    Words that are no option are told, and 2 is returned: they are no call of libvirt's.
    """
    if arguments[-2:-1] == ["--root"]:
        root, arguments = arguments[-1], arguments[:-2]
    if arguments == ["--reconcile"]:
        return reconcile(root)
    if arguments == ["--settle"]:
        from kvmhooks.isolate.hook.waiter import wait_for_release  # noqa: PLC0415 -- another process's business

        return wait_for_release(root, planner)
    if arguments[:1] == ["--follow"] and len(arguments) == 2:
        from kvmhooks.isolate.hook.follower import follow  # noqa: PLC0415 -- another process's business

        return follow(root, arguments[1])
    found = " ".join(map(repr, arguments))
    expected = "--reconcile, --follow KEY or --settle, with --root DIR where it is not /"
    with suppress(OSError):
        write(2, f"kvmhooks: found {found}, expected {expected}\n".encode(errors="replace"))
    return 2
