"""The capabilities that libvirt tells of decide before its version does."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from kvmhooks.cli.main import main
from kvmhooks.errors import InputError, PlanError
from kvmhooks.libvirt.capabilities import told_by
from kvmhooks.machine.devices.filesystem import VIRTIOFS
from kvmhooks.machine.devices.tpm import EMULATOR
from kvmhooks.machine.qemu_features import HYPERV, SEV, SEV_SNP
from kvmhooks.placement import Target, plan
from kvmhooks.spec import parse_vm
from tests.golden.cases import golden_host

CAPTURED = Path(__file__).with_name("domain_capabilities.xml")
"""Of libvirt 9.0 and QEMU 7.2 without KVM and swtpm, without its CPU models."""

LEAST = 'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n'


def test_what_is_listed_and_what_is_told_of() -> None:
    """Values, things that are there, and the places of which something is told at all."""
    told = told_by(CAPTURED.read_bytes())
    assert {word for word in told if word.startswith(("devices/tpm", "features/s", "os/"))} == {
        "devices/tpm",
        "devices/tpm?",
        "devices/tpm/model?",
        "devices/tpm/model=tpm-tis",
        "devices/tpm/model=tpm-crb",
        "devices/tpm/backendModel?",
        "devices/tpm/backendModel=passthrough",
        "features/sev?",
        "features/sgx?",
        "os/firmware?",
        "os/loader",
        "os/loader?",
        "os/loader/type?",
        "os/loader/type=rom",
        "os/loader/type=pflash",
        "os/loader/readonly?",
        "os/loader/readonly=yes",
        "os/loader/readonly=no",
        "os/loader/secure?",
        "os/loader/secure=no",
    }
    assert "devices/filesystem/driverType=virtiofs" in told


def test_they_decide_where_they_tell_and_the_version_does_elsewhere() -> None:
    """A TPM's emulator and SEV are not there, virtiofs is; of SEV-SNP it says nothing."""
    target = Target(qemu=(10, 1), libvirt=(11, 10), domain=told_by(CAPTURED.read_bytes()))
    assert EMULATOR.lacking(target) == (
        "libvirt's domain capabilities lack it here: a TPM's emulator (swtpm)"
    )
    assert SEV.lacking(target) == "libvirt's domain capabilities lack it here: SEV"
    assert HYPERV["vapic"].lacking(target) is not None
    assert HYPERV["spinlocks"].lacking(target) is None
    assert (VIRTIOFS.lacking(target), SEV_SNP.lacking(target)) == (None, None)
    alone = attrs.evolve(target, libvirt=None)
    assert EMULATOR.lacking(alone) is None


def test_what_libvirt_cannot_do_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it is defined, with its place; by the verbs as well."""
    text = LEAST + 'tpm.model = "crb"\n'
    target = Target(domain=told_by(CAPTURED.read_bytes()))
    with pytest.raises(PlanError, match=r"tpm\.model: .*swtpm"):
        plan(parse_vm(text, folder=Path("/")), golden_host("laptop"), target=target)
    spec = tmp_path / "a.toml"
    spec.write_text(text + 'machine.accel = "tcg"\n')
    assert main(["xml", str(spec), "--capabilities", str(CAPTURED)]) == 1
    assert "swtpm" in capsys.readouterr().err
    assert main(["xml", str(spec)]) == 0


@pytest.mark.parametrize("text", ["<domain/>", "<domainCapabilities>", "<!DOCTYPE a><a/>"])
def test_what_is_no_answer_of_libvirts_is_refused(text: str) -> None:
    """One message, no traceback."""
    with pytest.raises(InputError):
        told_by(text)
