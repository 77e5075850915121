"""Each socket of a VM is found by who is of another version, and no name means two things."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from kvm_launch.talk import socket_names
from kvm_launch.talk.control import listening
from kvm_launch.talk.socket_names import OLDER, link_older, path_of
from kvmhooks.errors import LaunchError

if TYPE_CHECKING:
    from pathlib import Path


def test_no_name_is_given_to_another_thing() -> None:
    """Those of the versions before stay what they were: their supervisors run on."""
    names = {
        what: name
        for what, name in vars(socket_names).items()
        if isinstance(name, str) and name.endswith(".sock")
    }
    assert names == {
        "AGENT": "agent.sock",
        "CONSOLE": "console.sock",
        "INCOMING": "incoming.sock",
        "QMP": "qmp.sock",
        "QMP_USER": "qmp-user.sock",
        "SUPERVISE": "supervise.sock",
    }
    assert OLDER == {"qmp-user.sock": "control.sock", "supervise.sock": "supervisor.sock"}
    assert not {*OLDER.values()} & {*names.values()}


@pytest.mark.parametrize("name", OLDER)
def test_one_is_where_it_is(tmp_path: Path, name: str) -> None:
    """At today's name, whatever else is there; at the older one when there is no other; at
    today's when there is none, which is then said not to be there."""
    assert path_of(tmp_path, name) == tmp_path / name
    (tmp_path / OLDER[name]).touch()
    assert path_of(tmp_path, name) == tmp_path / OLDER[name]
    (tmp_path / name).touch()
    assert path_of(tmp_path, name) == tmp_path / name


def test_a_link_to_nothing_is_no_socket(tmp_path: Path) -> None:
    """A QEMU that ends removes its socket, and not the link to it."""
    name = socket_names.QMP_USER
    link_older(tmp_path / name)
    assert path_of(tmp_path, name) == tmp_path / name


def test_a_client_of_before_finds_it(tmp_path: Path) -> None:
    """By the older name, also after the directory has got the name of another VM."""
    before, after = tmp_path / "vm~", tmp_path / "vm"
    before.mkdir()
    with closing(listening(before)) as listener, socket.socket(socket.AF_UNIX) as client:
        before.rename(after)
        client.connect(str(after / "supervisor.sock"))
        with closing(listener.accept()[0]) as peer:
            peer.sendall(b"x")
            assert client.recv(1) == b"x"
    assert sorted(path.name for path in after.iterdir()) == ["supervise.sock", "supervisor.sock"]


def test_a_name_that_is_taken_is_told(tmp_path: Path) -> None:
    """Nothing is put in the place of what is there."""
    older = tmp_path / "supervisor.sock"
    older.touch()
    with pytest.raises(LaunchError) as told:
        listening(tmp_path)
    assert str(told.value) == f"{older}: File exists"
