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

from kvmhooks.host.model import Kvm

if TYPE_CHECKING:
    from kvmhooks.host.tree import Tree

_MODULES: Final = "sys/module"
_MODULE_NAME: Final = re.compile(r"kvm(?:_([a-z0-9]{1,16}))?", re.ASCII)
_GET_API_VERSION: Final = 0xAE00
"""``KVM_GET_API_VERSION`` of include/uapi/linux/kvm.h."""
API_VERSION: Final = 12


def read_kvm(tree: Tree) -> Kvm | None:
    """Read what the host says of KVM; None where the tree tells nothing of it."""
    modules = tree.directory(_MODULES)
    names: list[str] = []
    if modules is not None:
        with modules:
            names = sorted(name for name in modules.names() if _MODULE_NAME.fullmatch(name))
    vendors = [found[1] for name in names if (found := _MODULE_NAME.fullmatch(name)) and found[1]]
    available = _is_available(tree)
    if modules is None and available is None:
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
    )


def _is_available(tree: Tree) -> bool | None:
    """Ask ``/dev/kvm`` itself; in a captured tree it is a file with the version it gave."""
    if not tree.is_live:
        said = tree.text("dev/kvm")
        return None if not said else said == str(API_VERSION)
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        tree.flaws.add("dev/kvm", f"cannot be opened: {error.strerror}")
        return False
    try:
        return fcntl.ioctl(device, _GET_API_VERSION) == API_VERSION
    except OSError as error:
        tree.flaws.add("dev/kvm", f"does not speak KVM: {error.strerror}")
        return False
    finally:
        os.close(device)


def _read_parameters(tree: Tree, module: str) -> list[tuple[str, str]]:
    directory = tree.directory(f"{_MODULES}/{module}/parameters")
    if directory is None:
        return []
    with directory:
        values = ((name, directory.text(name)) for name in sorted(directory.names()))
        return [(name, value) for name, value in values if value is not None]
