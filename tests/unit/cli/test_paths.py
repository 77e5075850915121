"""Every verb that is given a file, and the path in its message: as the user gave it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kvm_launch.commands import main as kvm_launch
from kvmhooks.cli.main import main
from kvmhooks.signals import SIGNALS
from kvmhooks.values import CpuSet
from tests.isolate_model.kernel import Kernel
from tests.isolate_model.tree import plant
from tests.isolate_model.world import Vm

VM = 'name = "a"\ncpu = {vcpus = 1}\nmemory = {size = "1GiB"}\n[[disk]]\npath = "a.qcow2"\n'
TOML, XML, CLAIMS = b"cpu = 1\n", b"<domain><urn:kvmhooks:1></domain>", b'{"format": 2}'

GIVEN: dict[str, bytes] = {
    "plan FILE --host root": TOML,
    "plan vm.toml FILE --host root": TOML,
    "xml FILE --host root": TOML,
    "argv FILE --host root": TOML,
    "claim FILE --host root": TOML,
    "tune FILE --host root": XML,
    "import FILE": XML,
    "simulate FILE --root root": XML,
    "plan vm.toml --host FILE": b"no host",
    "plan vm.toml --host root --claims FILE": CLAIMS,
    "plan vm.toml --host root --capabilities FILE": XML,
    "devices 0000:3b:00.0 --root root --rom FILE": b"no ROM",
    "host --root FILE": b"no host",
    "status --root FILE": b"no host",
    "import vm.xml -o FILE": b"it is there",
    "kvm-launch FILE --print argv": TOML,
    "kvm-launch vm.toml --print plan --host FILE": b"no host",
}
"""Words, and what is wrong in a file that can be read."""

TAKEN = {"import vm.xml -o FILE": ("missing",), "kvm-launch FILE --print argv": ("directory",)}
"""Files that are no mistake: a file that is to be made, a folder of VMs."""

CASES = [
    (words, kind)
    for words in GIVEN
    for kind in ("missing", "directory", "wrong")
    if kind not in TAKEN.get(words, ())
]


def run(words: list[str]) -> int:
    """Run a command; kvm-launch has signals of its own meanwhile."""
    if words[0] != "kvm-launch":
        return main(words)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        return kvm_launch.main(words[1:])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(("words", "kind"), CASES)
def test_a_message_names_a_file_as_the_user_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    kind: str,
) -> None:
    """It begins with the path, and not with another one: a basename is that of many files."""
    plant(Kernel("plain", 8, 2), tmp_path / "root")
    card = tmp_path / "root/sys/bus/pci/devices/0000:3b:00.0"
    card.mkdir(parents=True)
    for name, text in (("class", "0x020000"), ("vendor", "0x8086"), ("device", "0x1572")):
        (card / name).write_text(f"{text}\n")
    (tmp_path / "vm.toml").write_text(VM)
    (tmp_path / "vm.xml").write_bytes(Vm("a", CpuSet({6}), CpuSet({0})).xml)
    (tmp_path / "below").mkdir()
    file = tmp_path / "below/given.toml"
    if kind == "directory":
        file.mkdir()
    elif kind == "wrong":
        file.write_bytes(GIVEN[words])
    monkeypatch.chdir(tmp_path)
    given = "below/given.toml"
    assert run(words.replace("FILE", given).split()) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"{given}: "), told
    assert f"{tmp_path}/below" not in told.replace(given, "")
