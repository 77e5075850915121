"""The machine's identity and kind, what it starts, and what every VM of kvmhooks has."""

from __future__ import annotations

import re
from typing import Final

from kvmhooks.errors import Problem, SpecError
from kvmhooks.libvirt.edit.text import Element
from kvmhooks.libvirt.importing.reading import Reading
from kvmhooks.machine.domain_reading import Tables, fits, number
from kvmhooks.policy import GROUPS, NAMESPACE, SETTINGS
from kvmhooks.spec.model import MachineType, Uuid, VmName

_SEV_ES: Final = 1 << 2
_GROUP_OF: Final = {f"{{{NAMESPACE}}}{group}": group for group in GROUPS}
_ACCELERATORS: Final = {"kvm": "kvm", "qemu": "tcg"}


def identity(reading: Reading) -> Tables:
    """Return the name and the UUID; a name that is no file's is made one."""
    name = reading.text("name") or ""
    table: Tables = {"name": name}
    if not fits(VmName, name):
        table["name"] = re.sub(r"[^A-Za-z0-9_.+-]", "-", name).lstrip("_.+-")[:63] or "vm"
        element = reading.root.find("name")
        if element is not None:
            reading.leave(element, f'kvmhooks\' names have fewer characters: "{table["name"]}"')
    uuid = (reading.text("uuid") or "").lower()
    if re.fullmatch("[0-9a-f]{32}", uuid):  # libvirt takes it without hyphens, too
        uuid = "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))
    if fits(Uuid, uuid):
        table["uuid"] = uuid
    return table


def machine(reading: Reading) -> Tables:
    """Return the accelerator, the machine type and the emulator.

    Raises ``SpecError`` for another architecture or a hypervisor other than QEMU.
    """
    root = reading.read(reading.root, "type", "id")
    kind = root.get("type", "")
    table: Tables = {}
    if kind not in _ACCELERATORS:
        raise SpecError(
            "domain", (Problem("@type", repr(kind), '"kvm" or "qemu": kvmhooks has QEMU\'s VMs'),)
        )
    table["accel"] = _ACCELERATORS[kind]
    element = reading.find("os/type", "arch", "machine")
    arch = None if element is None else element.get("arch")
    if arch not in {None, "x86_64"}:
        raise SpecError("domain", (Problem("os/type@arch", repr(arch), '"x86_64"'),))
    if element is not None and element.text.strip() != "hvm":
        found = repr(element.text.strip())
        raise SpecError("domain", (Problem("os/type", found, '"hvm"'),))
    wanted = None if element is None else element.get("machine")
    if fits(MachineType, wanted):
        table["type"] = wanted
    elif element is not None and wanted is not None:
        reading.leave_attribute(
            element, "machine", f"found {wanted!r}: kvmhooks has q35, whose devices are elsewhere"
        )
    emulator = reading.whole("devices/emulator")
    if emulator:
        table["emulator"] = emulator
    return {"machine": table}


def boot(reading: Reading) -> Tables:
    """Return the ROM image, and a kernel given directly."""
    reading.find("os")
    table: Tables = {}
    loader = reading.root.find("os/loader")
    if loader is not None and loader.get("type", "rom") == "rom" and loader.text.strip():
        reading.read(loader, "type", "readonly")
        table["firmware"] = loader.text
    table |= _uefi(reading, loader)
    menu = reading.root.find("os/bootmenu")
    if menu is not None and menu.get("enable") in {"yes", "no"}:
        reading.read(menu, "enable")
        table["menu"] = menu.get("enable") == "yes"
    for key in ("kernel", "initrd"):
        text = reading.whole(f"os/{key}")
        if text:
            table[key] = text
    words = reading.root.find("os/cmdline")
    if words is not None and "kernel" in table and words.text.isprintable():
        table["cmdline"] = reading.read(words).text
    for element in reading.root.all("os/boot"):
        if "kernel" in table:
            reading.decide(element, "os/boot", "the kernel is given directly")
        elif element.get("dev") == "hd":
            reading.decide(element, "os/boot", "disks are tried in their order")
    return {"boot": table} if table else {}


def _uefi(reading: Reading, loader: Element | None) -> Tables:
    """Return OVMF: its code and the VM's own variables, or libvirt's choice of both.

    Secure boot needs the guest to be kept from the firmware's memory: ``<smm>``.
    """
    chosen = reading.root.find("os")
    is_auto = chosen is not None and chosen.get("firmware") == "efi"
    if not is_auto and (loader is None or loader.get("type") != "pflash"):
        return {}
    table: Tables = {"firmware": "uefi"}
    if chosen is not None and is_auto:
        reading.read(chosen, "firmware")
    if loader is not None:
        reading.read(loader, "type", "readonly", "secure")
        if loader.text.strip():
            table["code"] = loader.text
    store = reading.root.find("os/nvram")
    if store is not None:
        reading.read(store, "template")
        named = {"variables": store.text.strip(), "template": store.get("template")}
        table |= {key: text for key, text in named.items() if text}
    if _is_secure(reading, loader):
        table["secure_boot"] = True
        reading.expect(reading.root.find("features/smm"), {"state": "on"})
    return table


def _is_secure(reading: Reading, loader: Element | None) -> bool:
    """Return whether only what is signed is started: said of the loader, or of libvirt's choice."""
    is_secure = loader is not None and loader.get("secure") == "yes"
    for feature in reading.root.all("os/firmware/feature"):
        if feature.get("name") == "secure-boot" and feature.get("enabled") in {"yes", "no"}:
            reading.find("os/firmware")
            reading.read(feature, "name", "enabled")
            is_secure = feature.get("enabled") == "yes"
    return is_secure


def security(reading: Reading) -> Tables:
    """Return ``[security]``: how the guest's memory is encrypted.

    SEV-ES is SEV with bit 2 of its policy (AMD's «SEV API», guest policy), which libvirt reads to
    the base of 16, with and without ``0x`` (``hexuint``, schemas/basictypes.rng).
    """
    element = reading.root.find("launchSecurity")
    kind = None if element is None else element.get("type")
    if element is None or kind not in {"sev", "sev-snp", "tdx"}:
        return {}
    reading.read(element, "type")
    table: Tables = {"type": kind}
    policy = reading.text("launchSecurity/policy") or ""
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", policy):
        value = int(policy, 16)
        table["policy"] = f"{value:#x}"
        if kind == "sev" and value & _SEV_ES:
            table["type"] = "sev-es"
    if element.get("kernelHashes") in {"yes", "no"}:
        reading.read(element, "kernelHashes")
        table["kernel_hashes"] = element.get("kernelHashes") == "yes"
    for tag, key in (("cbitpos", "cbitpos"), ("reducedPhysBits", "reduced_phys_bits")):
        text = reading.text(f"launchSecurity/{tag}")
        if text is not None:
            table[key] = number(text, f"launchSecurity/{tag}")
    return {"security": table}


def isolation(reading: Reading) -> Tables:
    """Return the settings in kvmhooks' own metadata, and the wish for huge pages of the pool."""
    if reading.find("metadata") is None:
        return {}
    element = reading.find(f"metadata/{{{NAMESPACE}}}vm")
    if element is None:
        return {}
    tables: Tables = {}
    for child in element.children:
        group = _GROUP_OF.get(child.tag)
        if group is None:
            continue
        for key in child.attributes:
            _said(reading, child, f"{group}.{key}", tables)
    return tables


def _said(reading: Reading, child: Element, name: str, tables: Tables) -> None:
    """Put a setting into the table of vm.toml that has it, if there is one for it."""
    group, _, key = name.partition(".")
    setting, value = SETTINGS.get(name), (child.get(key) or "").strip()
    if setting is None or not setting.allows(value):
        return
    if not setting.word:
        policy = tables.setdefault("policy", {})
        policy.setdefault(group, {})[key] = setting.to_toml(value)
    elif setting.word == name:
        tables.setdefault(group, {})[key] = setting.to_toml(value)
    elif name == "isolation.siblings":
        if value == "idle":
            tables["cpu"] = {"smt": "isolate"}
    else:
        return  # a concern of the devices and the threads that it is about
    reading.read(child, key)


def constants(reading: Reading) -> Tables:
    """Note what kvmhooks writes in any case and what libvirt writes by itself."""
    root = reading.root
    reading.find("features")
    for path in ("features/acpi", "features/apic", "devices"):
        reading.find(path)
    for path, text in (
        ("on_poweroff", "destroy"),
        ("on_reboot", "restart"),
        ("on_crash", "destroy"),
    ):
        reading.expect(root.find(path), {}, text)
    reading.expect(root.find("features/vmport"), {"state": "off"})
    for path in ("memoryBacking/source", "memoryBacking/allocation"):
        element = root.find(path)
        if element is not None:
            reading.decide(element, path, "it follows from the pages")
    for path in ("resource", "seclabel"):
        for element in root.all(path):
            if element.get("type", "dynamic") == "dynamic":
                reading.decide(element, path, "libvirt's own choice")
    return {}
