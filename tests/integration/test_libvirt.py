"""kvm-launch through a real libvirtd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from lxml import etree

from kvmhooks.host import read
from kvmhooks.libvirt.capabilities import told_by
from kvmhooks.libvirt.tuning.tune import tune
from kvmhooks.values import CpuSet
from tests.fakehost import LARGE_SERVER, write_host
from tests.integration.components import QEMU, ROOT, Launcher, processes_of

QUICKSTART = ROOT / "examples" / "quickstart.toml"


def virsh(uri: str, *words: str) -> str:
    """Return what virsh says."""
    command = ["virsh", "--quiet", "--connect", uri, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_same_file_runs_in_libvirt(launcher: Launcher, guest: Path, libvirtd: str) -> None:
    """The quickstart is defined and started in libvirt, pinned as planned, and ends well."""
    assert guest.exists()
    for _ in ("the first time", "with the definition that is there already"):
        ran = launcher.run(f"--libvirt={libvirtd}", QUICKSTART)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "it sees what was planned: 2 sockets, 2 cores, 4 threads" in ran.stdout
        assert "end: the guest powered off" in ran.stdout
        assert ran.stdout.count("  as planned") == 6
    assert virsh(libvirtd, "list", "--all", "--name").split() == ["quickstart"]
    virsh(libvirtd, "undefine", "quickstart")
    assert processes_of("quickstart") == []


def test_libvirt_is_asked_what_it_can_do(launcher: Launcher, libvirtd: str) -> None:
    """A TPM is refused before anything is defined where libvirt finds no swtpm."""
    capabilities = launcher.base / "capabilities.xml"
    capabilities.write_text(virsh(libvirtd, "domcapabilities", "--machine", "q35"))
    has_swtpm = "devices/tpm/backendModel=emulator" in told_by(capabilities.read_bytes())
    programs = ("swtpm", "swtpm_setup", "swtpm_ioctl")  # virTPMEmulatorInit(), virtpm.c
    assert has_swtpm == all(map(shutil.which, programs))
    vm = launcher.vm("trusted", "[tpm]\nmodel = 'crb'")
    ran = launcher.run(f"--libvirt={libvirtd}", "--timeout", "0.5", vm)
    assert ran.returncode == (3 if has_swtpm else 1), ran.stdout + ran.stderr
    assert has_swtpm or 'tpm.model: found "crb", expected something else' in ran.stderr
    if has_swtpm:
        virsh(libvirtd, "undefine", "trusted")
    assert virsh(libvirtd, "list", "--all", "--name").split() == []


def test_pins_in_libvirt_are_those_of_the_plan(launcher: Launcher, libvirtd: str) -> None:
    """A dedicated vCPU's pin and the emulator's are in the domain, and the time limit ends it."""
    vm = launcher.vm("inlibvirt", cpu='vcpus = 1\nplacement = "dedicated"\nthreads = 1')
    ran = launcher.run(f"--libvirt={libvirtd}", "--timeout", "0.5", vm)
    assert ran.returncode == 3
    assert "0.5 s were over" in ran.stdout
    assert ran.stdout.count("  as planned") == 2
    assert virsh(libvirtd, "vcpupin", "inlibvirt").split()[:2] == ["0", "1"]
    virsh(libvirtd, "undefine", "inlibvirt")


def test_a_domain_of_the_same_name_is_not_overwritten(launcher: Launcher, libvirtd: str) -> None:
    """Somebody else's domain with the name stays as it is, and the message says how to go on."""
    other = launcher.base / "other.xml"
    other.write_text(
        "<domain type='kvm'><name>taken</name><memory>65536</memory>"
        "<os><type arch='x86_64'>hvm</type></os></domain>"
    )
    virsh(libvirtd, "define", str(other))
    before = virsh(libvirtd, "dumpxml", "taken")
    ran = launcher.run(f"--libvirt={libvirtd}", launcher.vm("taken"))
    assert ran.returncode == 1
    assert "give it as uuid, or another name" in ran.stderr
    assert virsh(libvirtd, "dumpxml", "taken") == before
    virsh(libvirtd, "undefine", "taken")


def test_what_libvirt_cannot_start_is_not_left_defined(launcher: Launcher, libvirtd: str) -> None:
    """A domain whose QEMU dies at its start is undefined again, and QEMU's words are shown."""
    image = launcher.base / "rom"
    image.write_bytes(b"no ROM")  # QEMU wants multiples of 64 KiB
    vm = launcher.vm("dead", top=f'[boot]\nfirmware = "{image}"')
    ran = launcher.run(f"--libvirt={libvirtd}", vm)
    assert ran.returncode == 3
    assert "could not be started" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "dead" not in virsh(libvirtd, "list", "--all", "--name").split()


GOLDEN = sorted(
    path
    for path in (ROOT / "tests" / "golden" / "expected").glob("*.xml")
    if "+" not in path.stem and not path.stem.startswith("confidential")
)
"""Those of the oldest target; this machine has neither SEV nor swtpm, which libvirt asks for."""


@pytest.mark.parametrize("xml", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_libvirt_defines_what_we_render(libvirtd: str, xml: Path, tmp_path: Path) -> None:
    """A real libvirtd takes every golden XML, validated, and keeps every pin and every address."""
    ours = etree.parse(xml).getroot()
    for emulator in ours.iterfind("devices/emulator"):  # libvirt asks it what it can do
        emulator.text = str(QEMU)
    domain = tmp_path / "domain.xml"
    domain.write_bytes(etree.tostring(ours))
    name = str(ours.findtext("name"))
    virsh(libvirtd, "define", "--validate", str(domain))
    try:
        kept = etree.fromstring(virsh(libvirtd, "dumpxml", "--inactive", name).encode())
    finally:
        virsh(libvirtd, "undefine", name)
    for path in (
        "cputune/*",
        "numatune/*",
        "cpu/numa/*",
        "cpu/topology",
        "memoryBacking//page",
        "devices/disk/address",
        "devices/interface/address",
    ):
        assert _attributes(kept, path) == _attributes(ours, path), path


def _attributes(domain: etree._Element, path: str) -> list[list[str]]:
    """Each element's name and attributes; libvirt orders them anew, and parts sets of vCPUs."""
    found: list[list[str]] = []
    for each in domain.iterfind(path):
        attributes = {str(key): str(value) for key, value in each.attrib.items()}
        numbers = next((name for name in ("vcpus", "iothreads") if name in attributes), None)
        each_of = CpuSet.parse(attributes.pop(numbers)) if numbers else (None,)
        rest = [str(item) for item in sorted(attributes.items())]
        found += [[str(each.tag), str(number), *rest] for number in each_of]
    return sorted(found)


DOMAINS = sorted((ROOT / "tests" / "golden" / "domains").glob("*.xml"))


def test_libvirt_defines_what_was_tuned(libvirtd: str, tmp_path: Path) -> None:
    """Of our own domains, each that libvirtd defines, validated, it defines tuned as well."""
    (tmp_path / "host").mkdir()
    host = read(write_host(tmp_path / "host", **LARGE_SERVER))
    count = 0
    for file in DOMAINS:
        before = etree.parse(file).getroot()
        if not _is_defined(libvirtd, before, tmp_path):
            continue
        tuned = etree.fromstring(tune(file.read_bytes(), host).document)
        assert _is_defined(libvirtd, tuned, tmp_path), file.name
        count += 1
    print(f"{count} of {len(DOMAINS)} domains are defined, as they are and tuned")
    assert count >= 12


def _is_defined(uri: str, domain: etree._Element, folder: Path) -> bool:
    for emulator in domain.iterfind("devices/emulator"):
        emulator.text = str(QEMU)
    path = folder / "domain.xml"
    path.write_bytes(etree.tostring(domain))
    command = ["virsh", "--quiet", "--connect", uri, "define", "--validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 0:
        virsh(uri, "undefine", "--nvram", str(domain.findtext("name")))
    return done.returncode == 0
