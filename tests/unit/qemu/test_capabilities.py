"""The QEMU and the libvirt that there are, and what that QEMU can do."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from kvmhooks.errors import LaunchError
from kvmhooks.qemu.capabilities import (
    Programs,
    Qemu,
    cache_directory,
    capabilities,
    describe,
    parse_answers,
    probe,
)
from kvmhooks.qemu.emulator import PLACES

ANSWERS = [
    {"QMP": {"version": {}, "capabilities": []}},
    {"return": {}},
    {"return": {"qemu": {"major": 9, "minor": 2, "micro": 1}, "package": ""}, "id": 0},
    {"return": {"present": True, "enabled": False}, "id": 1},
    {"return": [{"name": "q35", "is-default": True}, {"name": "microvm"}], "id": 2},
    {
        "return": [
            {"name": "max", "unavailable-features": []},
            {"name": "EPYC", "unavailable-features": ["fsrm", "topoext", "fsrm"]},
            {"name": "host"},
        ],
        "id": 3,
    },
    {
        "return": {
            "model": {
                "name": "base",
                "props": {"avx2": False, "fsrm": False, "topoext": False, "vendor": ""},
            }
        },
        "id": 4,
    },
    {
        "return": {
            "model": {
                "name": "max",
                "props": {"avx2": True, "fsrm": False, "topoext": False, "check": False},
            }
        },
        "id": 5,
    },
    {"return": [{"name": "virtio-blk-pci"}], "id": 6},
    {"return": [{"name": "quit"}], "id": 7},
    {"return": [{"name": "iothread-vq-mapping"}, {"name": "drive"}], "id": 8},
    {"error": {"class": "DeviceNotFound", "desc": "no such type"}, "id": 9},
    {"error": {"class": "DeviceNotFound", "desc": "no such type"}, "id": 10},
    {"error": {"class": "DeviceNotFound", "desc": "no such type"}, "id": 11},
    {"return": [{"name": "avx2"}, {"name": "sse4.1"}], "id": 12},
    {"error": {"class": "GenericError", "desc": "requires a regular file"}, "id": 13},
    {"timestamp": {}, "event": "SHUTDOWN", "data": {}},
]
EXPECTED = Qemu(
    path="/usr/bin/qemu",
    version="9.2.1",
    machines=("microvm", "q35"),
    default_machine="q35",
    cpu_models=("EPYC", "host", "max"),
    types=("virtio-blk-pci",),
    commands=("quit",),
    options={
        "virtio-blk-pci": ("drive", "iothread-vq-mapping"),
        "virtio-scsi-pci": (),
        "virtio-net-pci": (),
        "vfio-pci": (),
        "max-x86_64-cpu": ("avx2", "sse4.1"),
    },
    io_uring=True,
    lacking={"EPYC": ("fsrm", "topoext")},
    absent=("fsrm",),
)

HASTY = f"""#!{sys.executable}
import json, os, selectors, sys
os.set_blocking(0, False)
os.set_blocking(1, False)
version = {{"major": 9, "minor": 2, "micro": 1}}
answers = {{0: {{"qemu": version}}, 2: [{{"name": "m" * 1_000_000}}]}}
heard, out = b"", b""
while True:
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    if out:
        selector.register(1, selectors.EVENT_WRITE)
    if 0 in {{key.fd for key, _ in selector.select()}}:
        *lines, heard = (heard + os.read(0, 1 << 16)).split(b"\\n")
        for question in map(json.loads, lines):
            if question["execute"] == "quit":
                sys.exit()
            if "id" in question:
                said = {{"return": answers.get(question["id"], []), "id": question["id"]}}
                out += json.dumps(said).encode() + b"\\n"
    elif out:
        out = out[os.write(1, out[:4096]) :]
"""
"""A QEMU that hears before it speaks."""


def test_answers_are_told_from_greetings_and_events() -> None:
    """A device that this QEMU has not is one without options."""
    lines = list(map(json.dumps, ANSWERS))
    assert parse_answers(Path("/usr/bin/qemu"), lines) == EXPECTED
    with pytest.raises(LaunchError, match="/usr/bin/qemu: did not say over QMP what it is"):
        parse_answers(Path("/usr/bin/qemu"), lines[:2])
    with pytest.raises(LaunchError, match="/usr/bin/qemu: said over QMP what is no JSON: Untermin"):
        parse_answers(Path("/usr/bin/qemu"), [*lines[:4], lines[4][:-20]])
    with pytest.raises(LaunchError, match="did not answer over QMP to query-cpu-model-exp"):
        parse_answers(Path("/usr/bin/qemu"), [*lines[:6], *lines[7:]])


def _emulator(directory: Path, body: str) -> Path:
    """A program that counts its runs and does what it is told."""
    program = directory / "qemu"
    program.write_text(f'#!/bin/sh\necho run >> "{directory}/runs"\n{body}\n')
    program.chmod(0o755)
    return program


def _runs(directory: Path) -> int:
    return len((directory / "runs").read_text().splitlines())


def test_a_binary_is_asked_once_until_it_is_another(tmp_path: Path) -> None:
    """By identity: an upgrade is asked anew, a damaged memory too."""
    answers = "\n".join(map(json.dumps, ANSWERS))
    program = _emulator(tmp_path, f"cat <<'END'\n{answers}\nEND")
    cache = tmp_path / "cache"
    first = capabilities(program, cache)
    assert capabilities(program, cache) == first
    assert first.version == "9.2.1"
    assert _runs(tmp_path) == 1
    (kept,) = cache.iterdir()
    kept.write_text("{}")
    assert capabilities(program, cache) == first
    assert _runs(tmp_path) == 2
    os.utime(program, ns=(1, 1))
    assert capabilities(program, cache) == first
    assert _runs(tmp_path) == 3


def test_all_answers_come_however_slowly_they_are_read(tmp_path: Path) -> None:
    """QEMU loses what is not read yet when it is told to quit: it is told after its last answer."""
    program = tmp_path / "qemu"
    program.write_text(HASTY)
    program.chmod(0o755)
    assert capabilities(program, tmp_path / "cache").machines == ("m" * 1_000_000,)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'no such machine' >&2; exit 3", "qemu: no such machine"),
        ("exit 4", "qemu: ended with 4"),
        ("exit 0", "qemu: did not say over QMP what it is"),
    ],
)
def test_a_qemu_that_fails_is_named_with_its_last_words(
    tmp_path: Path, body: str, message: str
) -> None:
    """And nothing of it is kept."""
    program = _emulator(tmp_path, body)
    with pytest.raises(LaunchError, match=message):
        capabilities(program, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_unwritable_memory_is_no_failure(tmp_path: Path) -> None:
    """QEMU is asked the next time again."""
    answers = "\n".join(map(json.dumps, ANSWERS))
    program = _emulator(tmp_path, f"cat <<'END'\n{answers}\nEND")
    (tmp_path / "cache").write_text("a file, where the directory would be")
    assert capabilities(program, tmp_path / "cache").version == "9.2.1"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    """Neither program: two lines and no error."""
    programs = probe(emulators=[tmp_path / "qemu"], daemons=[tmp_path / "libvirtd"])
    assert programs == Programs(qemu=None, libvirt=None)
    assert list(describe(programs)) == ["", "QEMU:      not found", "libvirt:   not found"]


def test_the_qemu_of_this_machine_says_what_it_can(tmp_path: Path) -> None:
    """A real one: q35 and virtio are there, and the memory is only its owner's to write."""
    emulator = next((place for place in PLACES if os.access(place, os.X_OK)), None)
    if emulator is None:
        pytest.skip("QEMU is not installed")
    qemu = capabilities(emulator, tmp_path / "cache")
    assert "q35" in qemu.machines
    assert {"virtio-blk-pci", "memory-backend-memfd", "iothread"} <= set(qemu.types)
    assert "query-cpus-fast" in qemu.commands
    assert "drive" in qemu.options["virtio-blk-pci"]
    (kept,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) & 0o022 == 0
    assert capabilities(emulator, tmp_path / "cache") == qemu


def test_root_looks_at_no_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root trusts only what root alone can write."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/mine")
    expected = "/var/cache/kvmhooks" if os.geteuid() == 0 else "/tmp/mine/kvmhooks"
    assert cache_directory() == Path(expected)
