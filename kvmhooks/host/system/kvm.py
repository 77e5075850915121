"""KVM: whether a VM can be made, whose it is, and how its modules are set.

The device and its ioctl are described in the kernel's Documentation/virt/kvm/api.rst (4.1), the
parameters of the modules in Documentation/admin-guide/kernel-parameters.txt (``kvm.*``,
``kvm-intel.*``, ``kvm-amd.*``).
"""

from __future__ import annotations

import fcntl
import os
import re
from typing import TYPE_CHECKING, Final

from kvmhooks.host.system.system import Kvm

if TYPE_CHECKING:
    from kvmhooks.host.files.tree import Tree

_MODULES: Final = "sys/module"
_MODULE_NAME: Final = re.compile(r"kvm(?:_[a-z0-9]{1,16})?", re.ASCII)
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
_GET_API_VERSION: Final = 0xAE00
"""``KVM_GET_API_VERSION`` of include/uapi/linux/kvm.h."""
API_VERSION: Final = 12


def read_kvm(tree: Tree) -> Kvm | None:
    """Read what the host says of KVM; None where the tree tells nothing of it."""
    modules = tree.directory(_MODULES)
    names: list[str] = []
    if modules is not None:
        with modules:
            names = modules.names(_MODULE_NAME)
    vendors = [name.removeprefix("kvm_") for name in names if name != "kvm"]
    available = _is_available(tree)
    present = _is_present(tree, available=available)
    if modules is None and available is None and present is None:
        return None
    parameters = {
        f"{module}.{name}": value
        for module in names
        for name, value in _read_parameters(tree, module)
    }
    return Kvm(
        available=available,
        vendor=vendors[0] if len(vendors) == 1 else None,
        module_parameters=parameters if modules is not None else None,
        present=present,
    )


def _is_present(tree: Tree, *, available: bool | None) -> bool | None:
    """Tell whether the kernel has made the device; None where its class is not shown."""
    if not tree.has("sys/class/misc"):
        return available or None
    return tree.has("sys/class/misc/kvm")


def _is_available(tree: Tree) -> bool | None:
    """Ask ``/dev/kvm`` itself; in a captured tree it is a file with the version it gave."""
    if tree.is_live:
        version = _ask_version(tree)
        if tree.recorder is not None:
            tree.recorder.saw_text("dev/kvm", str(version))
        return version == API_VERSION
    api = tree.text("dev/kvm")
    return None if not api else api == str(API_VERSION)


def _ask_version(tree: Tree) -> int:
    """Return the API version of this machine's KVM; 0 where it cannot be used."""
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        tree.unread("dev/kvm", f"cannot be opened: {error.strerror}")
        return 0
    try:
        return fcntl.ioctl(device, _GET_API_VERSION)
    except OSError as error:
        tree.unread("dev/kvm", f"does not speak KVM: {error.strerror}")
        return 0
    finally:
        os.close(device)


def _read_parameters(tree: Tree, module: str) -> list[tuple[str, str]]:
    directory = tree.directory(f"{_MODULES}/{module}/parameters")
    if directory is None:
        return []
    with directory:
        values = ((name, directory.text(name)) for name in directory.names(_PARAMETER))
        return [(name, value) for name, value in values if value is not None]
