"""The encryption of a guest's memory: what the host can do, and what the guest must be for it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import evolve

from kvmhooks.errors import PlanError, SpecError
from kvmhooks.host import Host, read
from kvmhooks.inventory.hypervisor import Hypervisor
from kvmhooks.inventory.inventory import Inventory
from kvmhooks.inventory.usage import Holding
from kvmhooks.libvirt.capabilities import told_by
from kvmhooks.libvirt.xml import domain_xml
from kvmhooks.machine.target import ITS_OWN, CpuAnswers, Target
from kvmhooks.placement import Plan, plan, plan_all, replan
from kvmhooks.placement.plan import identity_of
from kvmhooks.placement.planned_usage import of_plan
from kvmhooks.qemu.argv import qemu_argv
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
        'security.type: found "sev-es", and 0 ASIDs for SEV-ES here (libvirt: maxESGuests), '
        "expected a host with one, see «minimum SEV ASID» in the firmware's setup"
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
    """By libvirt, QEMU or CPUID, in this order; by none of them libvirt fills it in, else a start
    is refused, whatever the processor's family is.
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
    assert refusal(spec, unknown, answering(ALONE)).startswith(
        "security.cbitpos: found nothing, and nobody tells it of this host, expected the "
        "processor's, such as 51: EBX[5:0] of CPUID 0x8000001F"
    )
    made = plan(spec, unknown, target=ALONE)  # a verb that only reads: a start would ask QEMU
    assert _security(made).cbitpos is None
    assert [
        each for each in made.warnings if each.startswith("security.cbitpos is left out: nobody")
    ]
    assert "cbitpos" not in " ".join(qemu_argv(made))
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


def misc(capacity: str, used: str | None = None) -> dict[str, str]:
    """Return the files of the kernel's count of keys."""
    files = {
        "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
        "sys/fs/cgroup/misc.capacity": capacity,
    }
    return files if used is None else {**files, "sys/fs/cgroup/misc.current": used}


def held(name: str, key: str, *, has_key: bool = False) -> Holding:
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return Holding(name=name, uuid=identity, key=key, has_key=has_key)


OWN = evolve(held("a", "sev_es", has_key=True), uuid=identity_of(vm('type = "sev-es"')))

FULL = 'security.type: found "sev-es", and of {} in use: {}, expected one that is free'


@pytest.mark.parametrize(
    ("files", "others", "problem"),
    [
        (misc("sev 9\nsev_es 3", "sev 0\nsev_es 2"), [], ""),
        (
            misc("sev 9\nsev_es 3", "sev 0\nsev_es 3"),
            [],
            FULL.format(
                "3 ASIDs for SEV-ES here (misc.capacity: sev_es) 3", "3 that are not known here"
            ),
        ),
        (
            misc("sev 9\nsev_es 3", "sev 0\nsev_es 2"),
            [held("b", "sev_es"), held("c", "sev_es", has_key=True), held("d", "sev")],
            FULL.format(
                "3 ASIDs for SEV-ES here (misc.capacity: sev_es) 3",
                "b, c, 1 that are not known here",
            ),
        ),
        (misc("sev 9\nsev_es 3", "sev 0\nsev_es 3"), [OWN], ""),
        (misc("sev 9\nsev_es 3"), [held(name, "sev_es") for name in "bc"], ""),
        (
            misc("sev 9\nsev_es 3"),
            [held(name, "sev_es") for name in "bcd"],
            FULL.format("3 ASIDs for SEV-ES here (misc.capacity: sev_es) 3", "b, c, d"),
        ),
        (
            misc("sev 9", "sev 0"),
            [],
            (
                'security.type: found "sev-es", and 0 ASIDs for SEV-ES here (misc.capacity: '
                "sev_es), expected a host with one, see «minimum SEV ASID» in the firmware's setup"
            ),
        ),
        (misc("tdx 1", "tdx 1"), [], ""),
        (
            {**CPUID, "dev/cpu/0/cpuid": "8000001f 2 2f f 2"},
            [held("b", "sev_es", has_key=True)],
            FULL.format("1 ASIDs for SEV-ES here (CPUID 0x8000001F) 1", "b"),
        ),
        ({}, [held(str(number), "sev_es") for number in range(9)], ""),
    ],
)
def test_a_guest_more_than_there_are_keys_is_refused(
    files: dict[str, str], others: list[Holding], problem: str, tmp_path: Path
) -> None:
    """The kernel counts what runs, its own key aside; who is promised one counts besides."""
    host = host_of(tmp_path, files=files)
    inventory = Inventory(host=host, holdings=tuple(others), hypervisor=Hypervisor(target=NEW))
    spec = vm('type = "sev-es"')
    if not problem:
        assert plan(spec, inventory)
        return
    with pytest.raises(PlanError) as caught:
        plan(spec, inventory)
    assert str(caught.value) == problem


def test_several_vms_share_the_keys(tmp_path: Path) -> None:
    """Of two that are planned beside each other the second one has none; a profile gives way."""
    host = host_of(tmp_path, files=misc("sev 9\nsev_es 1", "sev 0\nsev_es 0"))
    text = 'cpu.vcpus = 2\nmemory.size = "1GiB"\nsecurity.type = "sev-snp"'
    specs = [parse_vm(f'name = "{name}"\n{text}', folder=Path("/")) for name in "ab"]
    together = plan_all(specs, Inventory(host=host, hypervisor=Hypervisor(target=NEW)))
    assert [made.name for made in together.plans] == ["a"]
    assert str(together.refused["b"]) == (
        'security.type: found "sev-snp", and of 1 ASIDs for SEV-ES here (misc.capacity: sev_es) '
        "1 in use: a, expected one that is free"
    )


def test_a_profile_without_a_free_key_tells_why(tmp_path: Path) -> None:
    """It gives way to the next, and refuses at the last, each time with what was found."""
    host = host_of(tmp_path, files=misc("sev 9\nsev_es 1", "sev 0\nsev_es 1"))
    text = 'name = "a"\nprofile = "confidential"\ncpu.vcpus = 2\nmemory.size = "1GiB"'
    assert refusal(parse_vm(text, folder=Path("/")), host) == (
        'security.type: found "sev-es", and of 1 ASIDs for SEV-ES here (misc.capacity: sev_es) '
        "1 in use: 1 that are not known here, expected one that is free"
    )


def test_a_vm_that_runs_keeps_its_key_when_it_is_planned_anew(tmp_path: Path) -> None:
    """On a host without a free one; the QEMU to which it goes needs another."""
    host = host_of(tmp_path, cores=8, files=misc("sev 9\nsev_es 1", "sev 0\nsev_es 1"))
    inventory = Inventory(host=host, holdings=(OWN,), hypervisor=Hypervisor(target=NEW))
    spec = vm('type = "sev-es"', 'cpu.placement = "dedicated"')
    made = plan(spec, inventory)
    assert of_plan(made).key == "sev_es"
    assert of_plan(made, is_mapped=True).has_key
    other = evolve(held("b", ""), exclusive=made.dedicated_cpus)
    assert isinstance(replan(made, evolve(inventory, holdings=(OWN, other))), Plan)
    with pytest.raises(PlanError, match=r"of 1 ASIDs for SEV-ES here .* in use: a, expected one"):
        plan(spec, inventory.receiving(made.uuid))


def test_a_vm_that_runs_already_is_not_judged_anew(tmp_path: Path) -> None:
    """The programs that run it have all of it."""
    host = host_of(tmp_path, parameters=dict.fromkeys(ALL, "N"))
    assert plan(vm('type = "sev"'), host, target=ITS_OWN).hardware.security is not None


def _security(made: Plan) -> Any:
    assert made.hardware.security is not None
    return made.hardware.security
