"""The programs that a VM's devices need beside QEMU: what they are, decided from its spec alone.

virtiofsd (https://gitlab.com/virtio-fs/virtiofsd, and the older one of QEMU 7.2, tools/virtiofsd),
swtpm (swtpm(8)), passt (passt(1)). Each is connected with QEMU before either runs, so neither needs
a path that the other may open.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, field, frozen

from kvmhooks.qemu.passed_files import FIRST
from kvmhooks.spec.present import has_device

if TYPE_CHECKING:
    from kvm_launch.prepare.user import User
    from kvmhooks.spec import VmSpec

SOCKET: Final = FIRST
"""The number of the socket that a helper inherits."""

ALONE: Final = "every file belongs to one user of the guest: only root can serve others'"
EXPOSED: Final = (
    "root serves it, so the guest can leave setuid programs of root's where machine.user can run "
    "them: have it read-only, on a file system with nosuid, or below a folder that only root may "
    "search"
)


@frozen(kw_only=True)
class Program:
    """A program that was found on this host."""

    path: Path
    features: frozenset[str] = frozenset()
    """The features that it tells of (``--print-capabilities``)."""


@frozen(kw_only=True)
class Helper:
    """One program, started before QEMU and ended after it."""

    at: str
    """The place in the spec of what needs it."""
    name: str
    """The name that it has in messages."""
    command: tuple[str, ...]
    """The program and its arguments."""
    socket: str = ""
    """The name of its socket (``qemu.sockets``); empty for one that makes its own."""
    link: Literal["listening", "connected", "own"] = "own"
    """The socket that it inherits: one that listens, one that is connected with QEMU, or none."""
    path: Path | None = None
    """The socket that it makes, which QEMU connects to."""
    user: User | None = None
    """The user that runs it; None: who we are."""
    left_out: str = ""
    """Its limits here, as a sentence."""

    @property
    def ends_by_itself(self) -> bool:
        """It ends when its connection with QEMU does."""
        return self.link != "own"


@frozen(kw_only=True)
class HelperPlace:
    """The host's side of helpers: where they run."""

    programs: dict[str, Program]
    """By name, those that are there."""
    user: User | None
    """The user of QEMU, where that is another than we are."""
    users: dict[str, User | None] = field(factory=dict)
    """The users that the spec names for its own helpers."""
    is_root: bool
    alone: frozenset[int] = frozenset()
    """The folders, by index, whose files ``user`` serves as his alone: where he can change what the
    folder is, it would be any folder to root."""
    exposed: frozenset[int] = frozenset()
    """The folders of root's, by index, in which ``user`` can run what the guest leaves there."""
    state: Path
    """The folder of the TPM's state."""


def needed(spec: VmSpec, *, is_root: bool, alone: frozenset[int] = frozenset()) -> dict[str, str]:
    """Return what has to be installed: the place in the spec, and the program's name.

    ``alone`` is as ``Place`` has it.
    """
    folders = {f"filesystem[{at}]": "virtiofsd" for at in range(len(spec.filesystem))}
    if folders and (alone or not is_root):
        folders["filesystem"] = "unshare"
    nets = {f"net[{at}]": "passt" for at, net in enumerate(spec.net) if net.type == "passt"}
    tpm = {"tpm.model": "swtpm"} if has_device(spec, "tpm") else {}
    return {**folders, **nets, **tpm}


def helpers_of(spec: VmSpec, place: HelperPlace) -> tuple[Helper, ...]:
    """Return the helpers of a VM, in the order in which they are started.

    Everything that ``needed`` names has to be in ``place.programs``.
    """
    kinds = (_filesystems, _tpm, _nets, _named)
    return tuple(helper for kind in kinds for helper in kind(spec, place))


def _filesystems(spec: VmSpec, place: HelperPlace) -> list[Helper]:
    """Return the servers of folders: as root one serves as whoever the guest says, in namespaces.

    Another user's is root in a user namespace, where it knows nobody but that user: an ordinary
    user's, and for a folder of ``place.alone``.
    """
    filesystems = []
    for at, shared in enumerate(spec.filesystem):
        program = place.programs["virtiofsd"]
        is_alone = at in place.alone or not place.is_root
        alone = (str(place.programs["unshare"].path), "-U", "-r", "--") if is_alone else ()
        if "separate-options" in program.features:
            options = ("--shared-dir", str(shared.path), *(["--readonly"] * shared.readonly))
        else:
            options = ("-o", f"source={shared.path}")
        filesystems.append(
            Helper(
                at=f"filesystem[{at}]",
                name="virtiofsd",
                command=(*alone, str(program.path), f"--fd={SOCKET}", *options),
                socket=f"fs{at}",
                link="listening",
                user=_groupless(place.user) if at in place.alone else None,
                left_out=ALONE if is_alone else EXPOSED if at in place.exposed else "",
            )
        )
    return filesystems


def _groupless(user: User | None) -> User | None:
    """Return the user without further groups: in a user namespace none can be dropped any more.

    virtiofsd does so, with setgroups(2), which ``unshare -r`` denies (user_namespaces(7)).
    """
    return None if user is None else evolve(user, groups=())


def _tpm(spec: VmSpec, place: HelperPlace) -> list[Helper]:
    if not has_device(spec, "tpm"):
        return []
    command = (
        *(str(place.programs["swtpm"].path), "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={place.state},mode=0600"),
        *("--ctrl", f"type=unixio,fd={SOCKET}"),
    )
    return [
        Helper(
            at="tpm.model",
            name="swtpm",
            command=command,
            socket="tpm",
            link="listening",
            user=place.user,
        )
    ]


def _nets(spec: VmSpec, place: HelperPlace) -> list[Helper]:
    """Run as root, passt becomes nobody by itself."""
    return [
        Helper(
            at=f"net[{at}]",
            name="passt",
            command=(
                *(str(place.programs["passt"].path), "--foreground", "--quiet"),
                *("--fd", str(SOCKET)),
            ),
            socket=f"net{at}",
            link="connected",
            user=place.user,
        )
        for at, net in enumerate(spec.net)
        if net.type == "passt"
    ]


def _named(spec: VmSpec, place: HelperPlace) -> list[Helper]:
    """Return back ends that somebody else wrote."""
    return [
        Helper(
            at=f"helper[{at}]",
            name=Path(helper.command[0]).name,
            command=helper.command,
            path=helper.socket,
            user=place.user if helper.user is None else place.users[helper.user],
        )
        for at, helper in enumerate(spec.helper)
    ]
