"""Guests that make no claim start, always: whatever is broken of ours, whatever their XML says."""

from __future__ import annotations

import fcntl
import io
import os
import resource
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kvmhooks.isolate.hook import entry
from kvmhooks.values import CpuSet
from tests.isolate_model.calls import Calls, Outcome
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

LONGEST = 8.0
"""Seconds: two for the host, five for a system bus that does not answer."""

OURS = Vm("ours", CpuSet.parse("6-7"), CpuSet.parse("0-1"))
PLAIN = Vm("s", CpuSet.parse("6-7"), CpuSet.parse("0-1"), policy="").xml
MARK = b"urn:kvmhooks:1"
COMMENT = PLAIN.replace(b"<vcpu>", b"<!-- <kvmhooks:vm xmlns:kvmhooks='urn:kvmhooks:1'/> --><vcpu>")
BOMB = b'<!DOCTYPE d [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + COMMENT

OPERATIONS = (
    ["prepare", "begin", "-"],
    ["start", "begin", "-"],
    ["started", "begin", "-"],
    ["stopped", "end", "-"],
    ["release", "end", "-"],
    ["reconnect", "begin", "-"],
    ["migrate", "begin", "-"],
    ["restore", "begin", "-"],
)


def within(element: bytes) -> bytes:
    """A stranger's XML with one more element."""
    return PLAIN.replace(b"<vcpu>", element + b"<vcpu>")


STRANGERS = {
    "plain": PLAIN,
    "our name in a comment": COMMENT,
    "our name in a text": within(b"<description>urn:kvmhooks:1</description>"),
    "a longer namespace": within(b"<metadata><k:vm xmlns:k='urn:kvmhooks:10'/></metadata>"),
    "another element of ours": within(b"<metadata><k:vms xmlns:k='urn:kvmhooks:1'/></metadata>"),
    "our element elsewhere": within(b"<devices><k:vm xmlns:k='urn:kvmhooks:1'/></devices>"),
    "our element deeper": within(b"<metadata><a><k:vm xmlns:k='urn:kvmhooks:1'/></a></metadata>"),
    "no encoding of a text": b'<?xml version="1.0" encoding="rot13"?>' + COMMENT,
    "an unknown encoding": b'<?xml version="1.0" encoding="x\xc3\xa4"?>' + COMMENT,
    "UTF-7": b'<?xml version="1.0" encoding="utf-7"?>' + COMMENT,
    "UTF-16": COMMENT.decode().encode("utf-16"),
    "nothing": b"",
    "null bytes": b"\0" * 64 + MARK,
    "half of it": COMMENT[: len(COMMENT) // 2],
    "no XML": MARK,
    "a document type": BOMB,
    "deep": b"<a>" * 200_000 + MARK,
    "large": PLAIN.replace(b"</domain>", b" " * (5 << 20) + MARK + b"</domain>"),
    "a name with a line's end": COMMENT.replace(b"<name>s<", b"<name>s\nt<"),
    "no UUID": COMMENT.replace(b"<uuid>", b"<uuid>../../"),
    "a UUID that is long": COMMENT.replace(b"<uuid>", b"<uuid>" + b"a" * 5_000),
}


def record(text: bytes | str, mode: int = 0o600) -> Callable[[Path], None]:
    """Another record."""

    def put(root: Path) -> None:
        path = root / "run/kvmhooks/state.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)

    return put


def sparse(root: Path) -> None:
    os.truncate(root / "run/kvmhooks/state.json", 3 << 30)


def cut(root: Path) -> None:
    path = root / "run/kvmhooks/state.json"
    os.truncate(path, path.stat().st_size // 2)


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of a file or a directory."""

    def put(root: Path) -> None:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)

    return put


def mode(name: str, bits: int) -> Callable[[Path], None]:
    """A directory that others may enter or change."""

    def put(root: Path) -> None:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name).chmod(bits)

    return put


def owner(name: str) -> Callable[[Path], None]:
    def put(root: Path) -> None:
        if os.geteuid() == 0:
            os.chown(root / name, 65_534, 65_534)

    return put


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def nothing(root: Path) -> None:
    """All is well."""


BROKEN: dict[str, Callable[[Path], None]] = {
    "nothing": nothing,
    "another format": record('{"format": 9}'),
    "no object": record("[]"),
    "no JSON": record("{"),
    "no UTF-8": record(b'{"format": 2, "boot": "\xff"}'),
    "an empty record": record(""),
    "half a record": cut,
    "deep": record("[" * 100_000),
    "3 GiB": sparse,
    "a record for all": record("{}", 0o644),
    "another user's record": owner("run/kvmhooks/state.json"),
    "a FIFO as record": instead("run/kvmhooks/state.json", os.mkfifo),
    "a directory as record": instead("run/kvmhooks/state.json", os.mkdir),
    "a link as record": instead("run/kvmhooks/state.json", lambda path: path.symlink_to("x")),
    "a FIFO as the next record": instead("run/kvmhooks/state.json.new", os.mkfifo),
    "a directory as the next record": instead("run/kvmhooks/state.json.new", os.mkdir),
    "a directory for all": mode("run/kvmhooks", 0o755),
    "another user's directory": owner("run/kvmhooks"),
    "a directory as lock": instead("run/kvmhooks/lock", os.mkdir),
    "a FIFO as lock": instead("run/kvmhooks/lock", os.mkfifo),
    "a link as lock": instead("run/kvmhooks/lock", lambda path: path.symlink_to("x")),
    "vm.d for all": mode("etc/kvmhooks/vm.d", 0o777),
    "a file as vm.d": instead("etc/kvmhooks/vm.d", text("")),
    "a FIFO as vm.d": instead("etc/kvmhooks/vm.d", os.mkfifo),
    "no TOML": instead("etc/kvmhooks/kvmhooks.toml", text("[")),
    "a FIFO as configuration": instead("etc/kvmhooks/kvmhooks.toml", os.mkfifo),
    "a directory as configuration": instead("etc/kvmhooks/kvmhooks.toml", os.mkdir),
    "a FIFO as log": instead("dev/log", os.mkfifo),
}

ODD: dict[str, Callable[[Path], None]] = {
    "no processes": instead("proc/2/stat", text("")),
    "no interrupts": instead("proc/irq", text("")),
    "no CPUs": instead("sys/devices/system/cpu/online", text("x")),
    "no kernel": instead("proc/sys/kernel/osrelease", text("\u00b2.\u00b2")),
    "no boot": instead("proc/sys/kernel/random/boot_id", os.mkdir),
    "no groups": instead("sys/fs/cgroup/cgroup.controllers", os.mkdir),
}
"""Hosts that are not as any kernel has them."""


def cannot_write() -> None:
    """A full disk: each write to a file fails (``RLIMIT_FSIZE``), though it can be made."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def cannot_open() -> None:
    """No descriptor is left but those that the call needs for itself."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Another hook holds the lock of the record."""
    descriptor = os.open(root / "run/kvmhooks/lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def silent_bus(root: Path) -> Iterator[None]:
    """A system bus that takes whoever comes, and never answers; and a record that needs it."""
    (root / "run/systemd/system").mkdir(parents=True)
    (root / "run/dbus").mkdir()
    record("{}")(root)
    short = root.parent / "b"
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(short))
        bus.listen(8)
        (root / "run/dbus/system_bus_socket").symlink_to(short)
        yield


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host of 8 CPUs on plain files, on which a VM of ours has its own."""
    root = tmp_path_factory.mktemp("host")
    plant(Kernel("plain", 8, 4), root)
    (root / "run").mkdir()
    for operation in ("prepare", "start"):
        arguments = ["ours", operation, "begin", "-"]
        assert entry.main(arguments, io.BytesIO(OURS.xml), io.StringIO(), str(root)) == 0
    return root


class Case(NamedTuple):
    """Something that is broken, and the XML of the strangers that come then."""

    what: str
    root: Path
    xmls: Iterable[bytes] = (PLAIN,)
    enter: Callable[[], object] | None = None
    """The change to the process that calls the hook."""
    operations: Sequence[list[str]] = OPERATIONS


def tree(
    host: Path, folder: Path, broken: Callable[[Path], None] = nothing, *, is_odd: bool = False
) -> Path:
    """The same host with a record of its own, and what is broken there."""
    root = folder / str(len(list(folder.iterdir())))
    root.mkdir()
    shutil.copytree(host / "run", root / "run")
    for name in ("sys", "proc"):
        if is_odd:
            shutil.copytree(host / name, root / name)
        else:
            (root / name).symlink_to(host / name)
    broken(root)
    return root


def breaches(cases: Sequence[Case]) -> list[str]:
    """Make every call in every case, some cases beside each other: which were not as they must."""
    found, count = [], 0
    for at in range(0, len(cases), 4):
        under_way = []
        for case in cases[at : at + 4]:
            calls = [(["s", *words], xml) for words in case.operations for xml in case.xmls]
            under_way.append((case.what, Calls(case.root, calls, case.enter)))
            count += len(calls)
        for what, running in under_way:
            wrong = filter(_is_breach, running.outcomes())
            found += [f"{what}: {outcome}" for outcome in wrong]
    print(f"{count} calls of strangers in {len(cases)} cases")
    return found


def _is_breach(outcome: Outcome) -> bool:
    return bool(outcome.code or outcome.printed or outcome.stderr or outcome.seconds > LONGEST)


def test_strangers_start_whatever_is_broken_of_ours(host: Path, tmp_path: Path) -> None:
    """Exit code 0, nothing printed, nothing said, in time: for every fault and every operation."""
    cases = [
        Case(what, tree(host, tmp_path, broken), (PLAIN, COMMENT))
        for what, broken in BROKEN.items()
    ]
    cases += [Case(what, tree(host, tmp_path, odd, is_odd=True)) for what, odd in ODD.items()]
    limits = (cannot_write, cannot_open)
    cases += [Case(limit.__name__, tree(host, tmp_path), enter=limit) for limit in limits]
    assert breaches(cases) == []


@pytest.mark.parametrize("state", ["well", "broken"])
def test_strangers_start_whatever_their_xml_says(host: Path, tmp_path: Path, state: str) -> None:
    """Nor do our name in it, an encoding, a document type or a name that is none keep one back."""
    broken = record("{}") if state == "broken" else mode("etc/kvmhooks/vm.d", 0o755)
    cases = [Case(what, tree(host, tmp_path, broken), (xml,)) for what, xml in STRANGERS.items()]
    assert breaches(cases) == []


def test_strangers_wait_for_nobody(host: Path, tmp_path: Path) -> None:
    """Neither for a lock that is held nor for a bus that does not answer, longer than a bound."""
    locked, silent = tree(host, tmp_path), tree(host, tmp_path)
    started, release, reconnect = (OPERATIONS[at : at + 1] for at in (2, 4, 5))
    with held(locked), silent_bus(silent):
        cases = [
            Case("the lock", locked, (PLAIN, COMMENT), operations=started),
            Case("the lock", locked, operations=release),
            Case("the lock", locked, operations=reconnect),
            Case("the bus", silent, operations=started),
        ]
        assert breaches(cases) == []
