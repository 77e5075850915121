"""The encryption of a guest's memory: what the host can do, and what the guest must be for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from kvmhooks.errors import PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.libvirt.capabilities import told_by
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.target import ITS_OWN, CpuAnswers, Target
from kvmhooks.placement import Plan, plan
from kvmhooks.spec import VmSpec, parse_vm
from tests.fakehost import write_host

NEW = Target(qemu=(10, 1), libvirt=(11, 10))
CAPABILITIES = """\
<domainCapabilities><features><sev supported='yes'><cbitpos>51</cbitpos>
<reducedPhysBits>1</reducedPhysBits><maxGuests>59</maxGuests><maxESGuests>{es}</maxESGuests></sev>
<launchSecurity supported='yes'><enum name='sectype'><value>sev</value><value>sev-snp</value></enum>
</launchSecurity></features></domainCapabilities>"""

ALL = {"sev": "Y", "sev_es": "Y", "sev_snp": "Y"}


def host_of(
    folder: Path,
    vendor: Literal["intel", "amd"] = "amd",
    parameters: dict[str, str] | None = None,
    **more: Any,
) -> Host:
    """Return a host whose KVM has these parameters beside ``nested``."""
    files = {
        f"sys/module/kvm_{vendor}/parameters/{name}": value
        for name, value in (ALL if parameters is None else parameters).items()
    }
    files |= more.pop("files", {})
    return read(write_host(folder, kvm=vendor, files=files, **more))


def vm(security: str, others: str = "") -> VmSpec:
    text = f'name = "a"\n{others}\ncpu.vcpus = 2\nmemory.size = "1GiB"\nsecurity = {{ {security} }}'
    return parse_vm(text, folder=Path("/vms"))


def refusal(spec: VmSpec, host: Host, target: Target = NEW) -> str:
    with pytest.raises(PlanError) as caught:
        plan(spec, host, target=target)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "vendor", "parameter"),
    [
        ("sev", "amd", "kvm_amd.sev"),
        ("sev-es", "amd", "kvm_amd.sev_es"),
        ("sev-snp", "amd", "kvm_amd.sev_snp"),
        ("tdx", "intel", "kvm_intel.tdx"),
    ],
)
def test_each_type_has_its_modules_parameter(
    kind: str, vendor: Literal["intel", "amd"], parameter: str, tmp_path: Path
) -> None:
    """It is refused where the parameter says no, and where the module has none of that name."""
    name = parameter.partition(".")[2]
    spec = vm(f'type = "{kind}"')
    on = host_of(tmp_path / "on", vendor, {name: "Y"})
    off = host_of(tmp_path / "off", vendor, {**ALL, name: "N"} if vendor == "amd" else {name: "N"})
    none = host_of(tmp_path / "none", vendor, {})
    made = plan(spec, on, target=NEW)
    assert made.hardware.security is not None
    assert made.hardware.security.type == kind
    at = f'security.type: found "{kind}", expected a host that has it'
    assert refusal(spec, off) == f"{at}: {parameter} is N here"
    module = parameter.partition(".")[0]
    why = f"this {module} has no parameter {name}: the kernel is older, or built without it"
    assert refusal(spec, none) == f"{at}: {why}"


def test_a_host_that_tells_nothing_of_kvm_is_believed(tmp_path: Path) -> None:
    """Not known is no reason to refuse: a captured tree may hold less."""
    host = attrs.evolve(host_of(tmp_path), kvm=None)
    assert host.kvm is None
    known = host_of(tmp_path / "b")
    assert known.kvm is not None
    host = attrs.evolve(known, kvm=attrs.evolve(known.kvm, module_parameters=None))
    assert plan(vm('type = "sev"'), host, target=NEW).hardware.security is not None


def test_a_profile_gives_way_and_says_why(tmp_path: Path) -> None:
    """Without SEV-SNP the profile takes SEV-ES, and tells of each step; without that it refuses."""
    spec = parse_vm(
        'name = "a"\nprofile = "confidential"\ncpu.vcpus = 2\nmemory.size = "1GiB"',
        folder=Path("/vms"),
    )
    made = plan(spec, host_of(tmp_path / "a", parameters={**ALL, "sev_snp": "N"}), target=NEW)
    assert made.hardware.security is not None
    assert made.hardware.security.type == "sev-es"
    assert made.warnings[:2] == (
        (
            "profile confidential: security.type is tdx instead of sev-snp: security.type: found "
            '"sev-snp", expected a host that has it: kvm_amd.sev_snp is N here'
        ),
        (
            "profile confidential: security.type is sev-es instead of tdx: security.type: found "
            '"tdx" on a processor of amd, expected intel'
        ),
    )
    off = dict.fromkeys(ALL, "N")
    assert "kvm_amd.sev_es is N here" in refusal(spec, host_of(tmp_path / "b", parameters=off))


def test_flash_is_no_firmware_for_a_guest_that_measures_its_own(tmp_path: Path) -> None:
    """sev-snp and tdx want a file as a ROM; a profile gives way to sev-es, which takes flash."""
    flash = 'boot.firmware = "uefi"\nboot.variables = "v"'
    host = host_of(tmp_path)
    expected = (
        'security.type: found "sev-snp" with boot.firmware = "uefi", which is flash, expected '
        "boot.firmware = the path of an OVMF that is one file, such as OVMF.amdsev.fd"
    )
    assert refusal(vm('type = "sev-snp"', flash), host) == expected
    assert plan(vm('type = "sev-es"', flash), host, target=NEW)
    text = f'profile = "confidential"\n{flash}'
    spec = parse_vm(f'name = "a"\n{text}\ncpu.vcpus = 2\nmemory.size = "1GiB"', folder=Path("/"))
    assert plan(spec, host, target=NEW).spec.security.type == "sev-es"
    assert refusal(vm('type = "sev-es"', f"{flash}\nboot.secure_boot = true"), host) == (
        'boot.secure_boot: found true with security.type = "sev-es", expected false: it has no SMM'
    )


def test_a_policy_against_smt_needs_a_host_without(tmp_path: Path) -> None:
    """Bit 16 of a SEV-SNP policy is looked up against the host's siblings."""
    spec = vm('type = "sev-snp", policy = "0x20000"')
    assert refusal(spec, host_of(tmp_path / "a", threads=2)) == (
        "security.policy: found 0x20000, which forbids SMT, on a host with it, expected bit 16 "
        "(0x10000) set, or SMT off (/sys/devices/system/cpu/smt/control)"
    )
    assert plan(spec, host_of(tmp_path / "b", threads=1), target=NEW)


@pytest.mark.parametrize(
    ("security", "expected"),
    [
        ('type = "sev", policy = "0x7"', 'bit 2 (0x4) clear, or type = "sev-es"'),
        ('type = "sev-es", policy = "0x3"', 'bit 2 (0x4) set, or type = "sev"'),
        ('type = "sev-snp", policy = "0x10000"', "bit 17 (0x20000) set, as in every such policy"),
    ],
)
def test_a_policy_that_makes_another_type_of_it_is_refused(security: str, expected: str) -> None:
    """QEMU goes by the policy's bit, whatever the type says."""
    with pytest.raises(SpecError) as caught:
        vm(security)
    assert str(caught.value).endswith(f"expected {expected}")


@pytest.mark.parametrize(
    ("kind", "policy", "is_told"),
    [
        ("sev", "0x2", True),
        ("sev", "0x3", False),
        ("sev-es", "0x6", True),
        ("sev-snp", "0xb0000", True),
        ("sev-snp", "0x30000", False),
    ],
)
def test_a_policy_that_allows_debugging_is_told(
    kind: str,
    policy: str,
    is_told: bool,  # noqa: FBT001 -- a parameter
    tmp_path: Path,
) -> None:
    """The owner asked for encryption, and the host could read the guest all the same."""
    made = plan(vm(f'type = "{kind}", policy = "{policy}"'), host_of(tmp_path), target=NEW)
    told = [each for each in made.warnings if "lets the host debug the guest" in each]
    assert bool(told) is is_told


def test_libvirt_tells_the_bit_and_how_many_guests_there_can_be(tmp_path: Path) -> None:
    """Its domain capabilities decide over the family; no key for a guest of a kind refuses it."""
    host = host_of(tmp_path)

    def target(es: int) -> Target:
        return attrs.evolve(NEW, domain=told_by(CAPABILITIES.format(es=es)))

    made = plan(vm('type = "sev-es"'), host, target=target(99))
    assert _security(made).cbitpos == 51
    assert refusal(vm('type = "sev-es"'), host, target(0)) == (
        'security.type: found "sev-es", expected a host with keys for it: libvirt tells '
        "maxESGuests 0, see «minimum SEV ASID» in the firmware's setup"
    )
    assert plan(vm('type = "sev"'), host, target=target(0))
    assert refusal(vm('type = "sev", cbitpos = 47'), host, target(9)) == (
        "security.cbitpos: found 47, expected 51, as libvirt tells of this host"
    )


CPUID = {"proc/cpuinfo": "vendor_id\t: AuthenticAMD", "dev/cpu/0/cpuid": "8000001f 17b 173 1fd 64"}
"""Of an EPYC 7003: the bit is 51."""

ALONE = attrs.evolve(NEW, libvirt=None)


def answering(target: Target, **answers: Any) -> Target:
    """Return a target whose QEMU was asked under KVM."""
    return attrs.evolve(target, answers={"kvm": CpuAnswers(**answers)})


def test_the_bit_is_told_and_never_guessed(tmp_path: Path) -> None:
    """By libvirt, QEMU or CPUID, in this order; by none of them libvirt fills it in, else it is
    refused, whatever the processor's family is.
    """
    spec = vm('type = "sev"')
    info = {"proc/cpuinfo": "vendor_id\t: AuthenticAMD\ncpu family\t: 25"}
    unknown, known = host_of(tmp_path / "a", files=info), host_of(tmp_path / "b", files=CPUID)
    words = told_by(CAPABILITIES.format(es=9).replace("<cbitpos>51", "<cbitpos>49"))
    by_libvirt = attrs.evolve(answering(NEW, cbitpos=50), domain=words)
    for host, target, bit in (
        (known, by_libvirt, 49),
        (known, attrs.evolve(by_libvirt, libvirt=None), 50),
        (known, ALONE, 51),
        (unknown, NEW, None),
    ):
        made = _security(plan(spec, host, target=target))
        assert (made.cbitpos, made.reduced_phys_bits) == (bit, 1)
    assert refusal(spec, unknown, ALONE).startswith(
        "security.cbitpos: found nothing, and nobody tells it of this host, expected the "
        "processor's, such as 51: EBX[5:0] of CPUID 0x8000001F"
    )
    spec = vm('type = "sev", cbitpos = 50, reduced_phys_bits = 5')
    made = _security(plan(spec, unknown, target=ALONE))
    assert (made.cbitpos, made.reduced_phys_bits) == (50, 5)
    assert refusal(spec, known, ALONE) == (
        "security.cbitpos: found 50, expected 51, as CPUID tells of this host"
    )


def test_the_bit_that_is_not_told_is_not_written(tmp_path: Path) -> None:
    """libvirt takes the definition without it, and reads its own host."""
    made = plan(vm('type = "sev-snp"'), host_of(tmp_path), target=NEW)
    assert "cbitpos" not in domain_xml(made)
    assert "<reducedPhysBits>1</reducedPhysBits>" in domain_xml(made)


REFUSED = "SEV is not enabled in KVM"
"""QEMU 7.2's words (``sev_get_capabilities()``), seen."""


def test_what_qemu_says_of_kvm_counts(tmp_path: Path) -> None:
    """It refuses SEV, and a profile gives way; a missing key of the platform does not."""
    host = host_of(tmp_path, files=CPUID)
    without = answering(ALONE, without_sev=REFUSED)
    expected = f'security.type: found "sev", expected a host that has it: QEMU says: {REFUSED}'
    assert refusal(vm('type = "sev"'), host, without) == expected
    told = attrs.evolve(
        answering(NEW, without_sev=REFUSED), domain=told_by(CAPABILITIES.format(es=9))
    )
    assert plan(vm('type = "sev"'), host, target=told)
    closed = answering(ALONE, without_sev="Failed to open /dev/sev: Permission denied")
    assert _security(plan(vm('type = "sev"'), host, target=closed)).cbitpos == 51
    assert "QEMU does not tell it (Failed to open /dev/sev" in refusal(
        vm('type = "sev"'), host_of(tmp_path / "b"), closed
    )


def test_a_vm_that_runs_already_is_not_judged_anew(tmp_path: Path) -> None:
    """The programs that run it have all of it."""
    host = host_of(tmp_path, parameters=dict.fromkeys(ALL, "N"))
    assert plan(vm('type = "sev"'), host, target=ITS_OWN).hardware.security is not None


def _security(made: Plan) -> Any:
    assert made.hardware.security is not None
    return made.hardware.security
