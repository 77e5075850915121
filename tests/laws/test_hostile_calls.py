"""Hostile XML and damaged records, seeded: the hook ends as it may, in time, without a traceback.

What went wrong is one line in the log, of an error that says what was expected: one of Python's own
kind would be a defect of ours.
"""

from __future__ import annotations

import io
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvmhooks.isolate.hook import entry
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import BINDS, GivenVm, Vm, hostdev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 5.0
LONG_SECONDS = 300.0
LONGEST = 5.0
"""Processor seconds for one call, on 4 MiB of elements too."""

EXPECTED = {"IsolationError", "LockedError", "StuckError", "BusError", "ValueFormatError"}
EXPECTED |= {"UnicodeEncodeError"}  # of a record with half a character, which no name has
"""What may go wrong with a call, as the log tells it."""

MARK = b"urn:kvmhooks:1"
OPERATIONS = (
    ("prepare", "begin"),
    ("start", "begin"),
    ("started", "begin"),
    ("release", "end"),
    ("reconnect", "begin"),
    ("migrate", "begin"),
    ("restore", "begin"),
)
CPUS = CpuSet.parse("6-7"), CpuSet.parse("0-1")
OURS = Vm("ours", *CPUS)
GIVEN = GivenVm("ours", *CPUS, ["0000:05:00.0"], f'{BINDS}<kvmhooks:memory hugepages="allocate"/>')
STRANGER = Vm("s", *CPUS, policy="")
SEEDS = (OURS.xml, GIVEN.xml, STRANGER.xml)
# fmt: off
PIECES = (
    b"99999999999", b"-1", b"\xc2\xb2", b"\xd9\xa3", b"0-99999999", b"^1", b"", b"\0", b"\xff",
    b"\x0b", b"\xe2\x80\xa8", b"&lt;", b"&#10;", b"&#x85;", b"&b;", b"<!--", b"-->", b"<![CDATA[",
    b"]]>", b"<a>", b"</a>", b"<vcpu>7</vcpu>", b"<vcpupin vcpu='1' cpuset='6'/>" * 300,
    b"../../etc", b"/" * 300, b"<!DOCTYPE d>", b"a" * 70_000, b"placement='auto'", MARK,
    b'<?xml version="1.0" encoding="rot13"?>', b'<?xml version="1.1" encoding="idna"?>',
    b"xmlns='urn:kvmhooks:1'", b"xmlns:k='urn:kvmhooks:1'", hostdev("0000:05:00.0").encode(),
    b"<k:vm xmlns:k='urn:kvmhooks:1'/>", b"<iothreads>65536</iothreads>", b"[" * 5_000,
    b'"', b"[", b"]" * 9, b"{", b"1e99", b"null", b"true", b'"\\ud800"', b"5" * 5_000,
)
# fmt: on


class Log:
    """The system's log of a host: what the hook has said there."""

    def __init__(self, root: Path, name: str) -> None:
        (root / "dev").mkdir()
        self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._peer.bind(name)
        self._peer.setblocking(False)
        os.rename(name, root / "dev/log")  # noqa: PTH104 -- a name of its own may be too long

    def lines(self) -> Iterator[str]:
        """Yield the lines since the last time."""
        while True:
            try:
                yield self._peer.recv(1 << 16).decode()
            except BlockingIOError:
                return

    def close(self) -> None:
        self._peer.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Path, Log]]:
    """A host of 8 CPUs on plain files, which is reached by a short name."""
    plant(Kernel("plain", 8, 4), tmp_path)
    (tmp_path / "run").mkdir()
    short = Path(f"/tmp/kvmhooks-log-{os.getpid()}")
    log = Log(tmp_path, str(short))
    short.symlink_to(tmp_path)
    yield short, log
    log.close()
    short.unlink()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A text with up to four changes."""
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        end = min(end, at + chance.choice((0, 0, 1, 8, 200)))
        data = data[:at] + chance.choice((chance.choice(PIECES), data[at:end] * 2)) + data[end:]
    return data[: chance.choice((len(data), len(data), len(data), chance.randrange(len(data) + 1)))]


def _is_defect(line: str) -> bool:
    kind = [*line.split(": "), "", "", ""][3]
    return kind.endswith("Error") and kind not in EXPECTED


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    "",
    "x",
    "0-7",
    "-",
    "=|",
    "\u00b2",
    "\ud800",
    "a/../../b",
    "0 " * 9,
    [],
    {},
)


def altered(data: bytes, chance: random.Random) -> bytes:
    """A record with up to three values that are none, or are somewhere else."""
    document = json.loads(data)
    for _ in range(chance.randint(1, 3)):
        at = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = chance.choice(keys)
            if not isinstance(at[key], dict | list) or chance.random() < 0.2:
                words = str(at[key]).split(" ")
                words[chance.randrange(len(words))] = str(chance.choice(ODD))
                at[key] = chance.choice((chance.choice(ODD), " ".join(words), document["held"]))
                break
            at = at[key]
    try:
        return json.dumps(document, separators=(",", ":")).encode()
    except ValueError:  # it holds itself
        return data


class Fuzz:
    """Makes calls, and keeps what was wrong with them."""

    def __init__(self, root: Path, log: Log) -> None:
        self.root, self._log = root, log
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def call(self, name: str, operation: str, sub: str, xml: bytes, *, is_strangers: bool) -> None:
        """Make one call; a stranger's ends well, and what may not fail does not."""
        printed = io.StringIO()
        begun = time.process_time()
        code = entry.main([name, operation, sub, "-"], io.BytesIO(xml), printed, str(self.root))
        took = time.process_time() - begun
        self.codes[f"{operation} {code}"] += 1
        lines = [line for line in self._log.lines() if _is_defect(line)]
        may_fail = operation in {"prepare", "start", "started"} and not is_strangers
        if (
            code not in ({0, 1} if may_fail else {0})
            or printed.getvalue()
            or lines
            or took > LONGEST
        ):
            self.wrong.append(f"{operation}: {code}, {took:.1f} s: {lines or xml[:2_000]!r}")

    def put(self, text: bytes) -> None:
        """Have another record, of our own mode."""
        path = self.root / "run/kvmhooks/state.json"
        path.write_bytes(text)
        path.chmod(0o600)

    def reconcile(self) -> None:
        """It may fail, with a code of its own."""
        code = entry.reconcile(str(self.root), ())
        self.codes[f"reconcile {code}"] += 1
        if code not in {0, 4}:
            self.wrong.append(f"reconcile: {code}")

    def until(self, seconds: float, step: Callable[[random.Random], None]) -> None:
        """Go on for so long, each step with a number of its own."""
        until = time.monotonic() + seconds
        seed = 0
        while time.monotonic() < until and not self.wrong:
            step(random.Random(seed))  # noqa: S311 -- a seed that can be told
            seed += 1
        print(f"{seed} steps, {self.codes.total()} calls: {dict(sorted(self.codes.items()))}")
        assert self.wrong == []
        assert seed > 20


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.slow)])
def test_hostile_xml(host: tuple[Path, Log], seconds: float) -> None:
    """In every operation, beside a VM of ours that holds its CPUs; and none is what it was not."""
    fuzz = Fuzz(*host)
    for operation in ("prepare", "start"):
        fuzz.call("ours", operation, "begin", OURS.xml, is_strangers=False)
    held = (fuzz.root / "run/kvmhooks/state.json").read_bytes()

    def step(chance: random.Random) -> None:
        seed = chance.choice(SEEDS)
        xml = mutated(seed, chance)
        for operation, sub in OPERATIONS:
            is_strangers = MARK not in xml and seed is STRANGER.xml
            fuzz.call("s", operation, sub, xml, is_strangers=is_strangers)
        fuzz.put(held)

    fuzz.until(seconds, step)


@pytest.mark.parametrize("seconds", [SECONDS, pytest.param(LONG_SECONDS, marks=pytest.mark.slow)])
def test_damaged_records(host: tuple[Path, Log], seconds: float) -> None:
    """Strangers start and stop beside any record; a VM of ours is refused or starts."""
    fuzz = Fuzz(*host)
    for operation in ("prepare", "start"):
        fuzz.call("ours", operation, "begin", OURS.xml, is_strangers=False)
    held = (fuzz.root / "run/kvmhooks/state.json").read_bytes()

    def step(chance: random.Random) -> None:
        damaged = chance.choice((mutated, altered, altered))(held, chance)
        for operation, sub in (("started", "begin"), ("reconnect", "begin"), ("release", "end")):
            fuzz.put(damaged)
            fuzz.call("s", operation, sub, STRANGER.xml, is_strangers=True)
        fuzz.put(damaged)
        fuzz.call("ours", "prepare", "begin", OURS.xml, is_strangers=False)
        fuzz.put(damaged)
        fuzz.reconcile()

    fuzz.until(seconds, step)
