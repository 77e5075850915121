"""The little D-Bus that systemd is asked over: against a real bus, and byte by byte."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmhooks.isolate.system import dbus_messages
from kvmhooks.isolate.system.dbus import BusError, Systemd
from kvmhooks.values import CpuSet

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A socket's path, which has at most 107 characters."""
    short = Path(f"/tmp/kvmhooks-bus-{os.getpid()}")
    short.symlink_to(tmp_path)
    yield f"{short}/bus"
    short.unlink()


@pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="no dbus-daemon here")
def test_a_real_bus_takes_our_messages(path: str, tmp_path: Path) -> None:
    """It checks every byte of a message, routes it, and says that systemd is not there."""
    config = tmp_path / "config.xml"
    config.write_text(CONFIG.format(path=path))
    daemon = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
    )
    try:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        with Systemd(path, 5) as systemd:
            for cpus in ("0-5", "0", "0-255"):
                with pytest.raises(BusError, match=r"SetUnitProperties: .*ServiceUnknown"):
                    systemd.set_cpus("system.slice", CpuSet.parse(cpus))
            for before in ("", "web.service"):
                with pytest.raises(BusError, match=r"StartTransientUnit: .*ServiceUnknown"):
                    systemd.start_scope(
                        "machine-a.scope", 7, parent="machine.slice", about="A VM", before=before
                    )
            with pytest.raises(BusError, match=r"Reload: .*ServiceUnknown"):
                systemd.reload()
            with pytest.raises(BusError, match=r"StartTransientUnit: .*ServiceUnknown"):
                systemd.start_service("a.service", ["/bin/true", "--root", "/"], about="nothing")
    finally:
        daemon.kill()
        daemon.communicate()


class Manager:
    """systemd's side of a connection: logs in, greets, answers each call as it is told to."""

    def __init__(self, path: str, answers: list[bytes]) -> None:
        self.bodies: list[tuple[str, str, bytes]] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(5)
        self._listener.close()

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            login = peer.recv(200)
            assert login == f"\0AUTH EXTERNAL {str(os.geteuid()).encode().hex()}\r\n".encode()
            peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
            assert peer.recv(7, socket.MSG_WAITALL) == b"BEGIN\r\n"
            for answer in (b"", *self._answers):
                _, fields, body = dbus_messages.read_message(peer)
                self.bodies.append((fields[3], fields.get(8, ""), body))
                signal = dbus_messages.message(4, 9, ((1, "o", "/a"), (3, "s", "Noise")), b"")
                reply = dbus_messages.message(2, 2, ((5, "u", len(self.bodies)),), b"")
                peer.sendall(signal + (answer or reply))


def test_allowed_cpus_are_marshalled_as_the_specification_says(path: str) -> None:
    """(name, runtime, [("AllowedCPUs", bytes, lowest CPU first)]), aligned by hand here."""
    manager = Manager(path, [b"", b""])
    with Systemd(path, 5) as systemd:
        systemd.set_cpus("system.slice", CpuSet.parse("0-5,9"))
        systemd.reload()
    manager.close()
    expected = (
        b"\x0c\0\0\0system.slice\0" + b"\0\0\0"  # the name, padded to 4
        b"\x01\0\0\0"  # true
        b"\x1a\0\0\0" + b"\0\0\0\0"  # 26 bytes of array, whose structs begin at 8
        b"\x0b\0\0\0AllowedCPUs\0"
        b"\x02ay\0"
        b"\x02\0\0\0\x3f\x02"
    )
    assert manager.bodies[1:] == [
        ("SetUnitProperties", "sba(sv)", expected),
        ("Reload", "", b""),
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no D-Bus message"),
        (b"l\x02\0\x01\xff\xff\xff\x7f\x02\0\0\0\0\0\0\0", "a message of"),
        (
            dbus_messages.message(
                3,
                2,
                ((4, "s", "org.freedesktop.systemd1.NoSuchUnit"), (5, "u", 2), (8, "g", "s")),
                b"\x04\0\0\0gone\0",
            ),
            "NoSuchUnit: gone",
        ),
        (b"l\x02\0\x01\0\0\0\0\x02\0\0\0\x08\0\0\0\x05\x01x\0\0\0\0\0", "header field of type 'x'"),
    ],
    ids=["no D-Bus", "too large", "an error", "a strange field"],
)
def test_an_answer_that_is_none_is_an_error(path: str, answer: bytes, reason: str) -> None:
    """Nothing that the other side says makes us hang or run out of memory."""
    manager = Manager(path, [answer])
    with Systemd(path, 5) as systemd, pytest.raises(BusError, match=reason):
        systemd.set_cpus("system.slice", CpuSet.parse("0-5"))
    manager.close()


def test_a_bus_that_is_not_there_is_an_error(path: str) -> None:
    """The reason says which call."""
    with pytest.raises(BusError, match=r"systemd: Reload: .*No such file"):
        Systemd(path, 1).reload()


def test_a_bus_that_says_nothing_is_waited_for_no_longer_than_allowed(path: str) -> None:
    """libvirt waits for us."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1)
    with listener, pytest.raises(BusError, match="timed out"):
        Systemd(path, 0.1).reload()
