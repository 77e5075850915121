"""The documents that verbs are given: whatever stands in them ends in one message."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from tests.fakehost import write_host

VM = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "64MiB"\n'

HOLDING = (
    '{"format": 1, "name": "b", "uuid": "c", "exclusive": "", "dedicated": "", "idle": "", '
    '"keeps_siblings": false, "floating": [], "memory": [], "hugepages": [], "ways": [], "pci": []}'
)
CLAIM = (
    '{"format": 1, "driver": "qemu", "uuid": "c", "name": "b", "exclusive": "", "hugepages": [], '
    '"strict": false, "settings": {}, "disks": []}'
)

CLAIMS: dict[str, bytes] = {
    "nothing": b"",
    "no UTF-8": b"\xff\xfe\xfa",
    "deep": b"[" * 100_000,
    "deep tables": b'{"a":' * 100_000,
    "a number": b"1",
    "a text": b'"x"',
    "a list of lists": b"[[]]",
    "a long number": b"[" + b"9" * 5000 + b"]",
    "an empty object": b"{}",
    "another format": b'[{"format": 2}]',
    "an unhashable format": b'[{"format": []}]',
    "settings of another kind": b'[{"settings": 1, "format": 1}]',
    "an endless count": CLAIM.replace('"hugepages": []', '"hugepages": [{"node": Infinity, '
                                      '"size_kib": 1, "count": 1}]').encode(),
    "no number": CLAIM.replace('"hugepages": []', '"hugepages": [{"node": NaN, "size_kib": 1, '
                               '"count": 1}]').encode(),
    "a short cache": CLAIM.replace("{}, ", '{}, "caches": [[3]], ').encode(),
    "an endless memory": HOLDING.replace('"memory": []', '"memory": [{"node": 0, "kib": '
                                         'Infinity}]').encode(),
    "CPUs beyond all": HOLDING.replace('"idle": ""', '"idle": "0-99999999999"').encode(),
    "CPUs that are none": HOLDING.replace('"idle": ""', '"idle": 7').encode(),
    "ways that are none": HOLDING.replace('"ways": []', '"ways": [{"cache": 0, "mask": 1}]')
    .encode(),
    "a device that is none": HOLDING.replace('"pci": []', '"pci": [1]').encode(),
}  # fmt: skip

CAPABILITIES: dict[str, bytes] = {
    "nothing": b"",
    "text": b"x",
    "another root": b"<domain/>",
    "a document type": b"<!DOCTYPE a [<!ENTITY b 'c'>]><domainCapabilities/>",
    "deep": b"<a>" * 5_000,
    "no UTF-8": b"<domainCapabilities>\xff</domainCapabilities>",
    "another encoding": b"<?xml version='1.0' encoding='rot13'?><domainCapabilities/>",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A host and a VM."""
    write_host(tmp_path / "host", cores=2)
    (tmp_path / "vm.toml").write_text(VM)
    (tmp_path / "vm.xml").write_text(
        "<domain type='kvm'><name>a</name><memory>65536</memory></domain>"
    )
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], run: Callable[[], int]) -> str:
    """The one line that a run of a verb is refused with."""
    assert run() == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("verb", ["plan", "xml", "tune"])
@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
def test_claims_that_are_none(
    files: Path, capsys: pytest.CaptureFixture[str], verb: str, claims: bytes
) -> None:
    """One line says what is wrong with them."""
    (files / "claims.json").write_bytes(claims)
    vm = str(files / ("vm.xml" if verb == "tune" else "vm.toml"))
    words = [verb, vm, "--host", str(files / "host"), "--claims", str(files / "claims.json")]
    refused(capsys, lambda: main(words))


@pytest.mark.parametrize("message", CAPABILITIES.values(), ids=CAPABILITIES)
def test_capabilities_that_are_none(
    files: Path, capsys: pytest.CaptureFixture[str], message: bytes
) -> None:
    """One line with the file's name says what is wrong with them."""
    (files / "caps.xml").write_bytes(message)
    words = [
        *("xml", str(files / "vm.toml"), "--host", str(files / "host")),
        *("--capabilities", str(files / "caps.xml")),
    ]
    assert refused(capsys, lambda: main(words)).startswith(str(files / "caps.xml"))


@pytest.mark.parametrize("version", ["", ".", "x", "9.x", "9" * 5000, "²", "-1", "1.-2", "٩.٩"])
@pytest.mark.parametrize("program", ["--qemu", "--libvirt"])
def test_versions_that_are_none(
    files: Path, capsys: pytest.CaptureFixture[str], program: str, version: str
) -> None:
    """They are a mistake of the command line."""
    with pytest.raises(SystemExit) as caught:
        main(["xml", str(files / "vm.toml"), f"{program}={version}"])
    assert caught.value.code == 2
    assert 'expected a version such as "9.2"' in capsys.readouterr().err


def test_an_imported_vm_is_utf8_wherever(files: Path) -> None:
    """TOML is UTF-8; what the locale says of texts is of no matter."""
    path = files / "vm.xml"
    path.write_text(
        "<domain type='kvm'><name>a</name><memory>65536</memory>"
        "<os><type>hvm</type><kernel>/é</kernel></os></domain>",
        encoding="utf-8",
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-m", "kvmhooks.cli.main", "import", path, "-o", files / "new.toml"],
        env=os.environ | plain, check=True, capture_output=True,
    )  # fmt: skip
    assert 'kernel = "/é"' in (files / "new.toml").read_bytes().decode()
