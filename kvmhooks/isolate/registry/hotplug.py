"""Devices that a VM was given, or that were taken from it, while it runs: no hook is called then.

libvirt keeps what a VM is in ``/run/libvirt/qemu/NAME.xml``, written anew at each change
(``virDomainObjSave()``, src/conf/domain_conf.c). Itself it is not asked: see ``pins``.
"""

from __future__ import annotations

from kvmhooks.errors import IsolationError, words_of
from kvmhooks.isolate.claims.domain_xml import devices_in
from kvmhooks.isolate.vm.cgroups import LIBVIRT, libvirts_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmhooks.isolate.record.state import Held
    from kvmhooks.isolate.system.system import System


def reread(system: System, held: Held) -> None:
    """Bring a running claim up to date with its VM's devices.

    Those of a VM that is not libvirt's stay as they were claimed.
    """
    path = libvirts_file(held.claim, ".xml")
    if held.claim.driver != LIBVIRT or not path:
        return
    try:
        devices = devices_in(system.read(path).encode("utf-8", "surrogateescape"))
    except FileNotFoundError:
        return
    except (IsolationError, OSError) as error:
        system.log(f"{held.claim.name}: /{path}: {words_of(error)}", 4)
        return
    if set(devices) != set(held.claim.devices):
        held.claim = held.claim.given(devices)
