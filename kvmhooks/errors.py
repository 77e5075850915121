"""Every error that kvmhooks raises on purpose: one tree.

::

    KvmhooksError            anything below
    ├── UsageError           the command line                            exit 2
    ├── InputError           a value that a person wrote                 exit 1
    │   ├── ValueFormatError   a CPU list, size or PCI address
    │   └── SpecError          vm.toml: one or more problems, each with its place
    ├── HostError            the host cannot be read                     exit 1
    ├── PlanError            what is asked does not fit the host         exit 1
    ├── IsolationError       the claim or the journal is refused         exit 1
    ├── LaunchError          something needed to start is missing        exit 1
    ├── OutputError          what was asked for cannot be printed        exit 1
    ├── QemuError            QEMU or libvirt failed                      exit 3
    └── RestoreError         the host is not as it was                   exit 4

``exit_code`` is what a command that is ended by the error returns. Nothing is imported here: the
libvirt hook uses these too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


TOLD = 100
"""So many problems of one file are told; whoever has more has sent another file."""


SHOWN = 80
"""So many characters of a value from outside are shown: a CPU list can have 190 KB."""


class KvmhooksError(Exception):
    """The root of the tree; its text is a whole message for a person."""

    exit_code: ClassVar[int] = 1


class UsageError(KvmhooksError):
    """The command line does not say what to do."""

    exit_code = 2


class Problem:
    """One thing wrong with what a person wrote: where, what was found, what was expected."""

    __slots__ = ("at", "expected", "found")

    def __init__(self, at: str, found: str, expected: str) -> None:
        self.at = at
        """The path of the value, such as ``disk[1].path``; empty for the whole."""
        self.found = found
        """The text there, as a person would write it (``'1GB'``, ``nothing``, ``12``)."""
        self.expected = expected

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Problem) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        message = f"found {self.found}, expected {self.expected}"
        return f"{self.at}: {message}" if self.at else message


def words_of(error: BaseException) -> str:
    """Return what an error says; of one of the system its file, and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


class InputError(KvmhooksError):
    """A value that a person wrote is not what was expected."""


class ValueFormatError(InputError, ValueError):
    """A text that is no CPU list, size or PCI address.

    It is a ``ValueError`` as well, as the caller of a parser expects.
    """

    def __init__(self, found: object, expected: str) -> None:
        is_long = isinstance(found, str) and len(found) > SHOWN
        shown = f"{str(found)[:SHOWN]!r}…" if is_long else repr(found)
        super().__init__(f"found {shown}, expected {expected}")
        self.found = found
        self.expected = expected


class SpecError(InputError):
    """A VM's description is refused, with all that is wrong with it at once."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        lines = [f"{source}: {problem}" for problem in problems[:TOLD]]
        if len(problems) > TOLD:
            lines.append(f"{source}: and {len(problems) - TOLD} more problems")
        super().__init__("\n".join(lines))
        self.source = source
        self.problems = problems


class HostError(KvmhooksError):
    """The host, or the captured tree of one, cannot be read."""


class PlanError(KvmhooksError):
    """A VM that asks for what does not fit the host.

    ``at`` is the path in the VM's description that binds (``cpu.vcpus``).
    """

    def __init__(self, at: str, found: str, expected: str) -> None:
        problem = Problem(at, found, expected)
        super().__init__(str(problem))
        self.problem = problem


class IsolationError(KvmhooksError):
    """A claim on the host is refused, or what is on record about one cannot be used."""


class LaunchError(KvmhooksError):
    """Something that is needed to start the VM is missing; nothing was started."""


class OutputError(KvmhooksError):
    """Output of a command that cannot be written, on a full disk for example."""


class QemuError(KvmhooksError):
    """QEMU or libvirt failed after it was started."""

    exit_code = 3


class RestoreError(KvmhooksError):
    """The VM is gone, but the host is not as it was; the text says what is left."""

    exit_code = 4
