"""The VMs' disks: the I/O scheduler and the depth of the queue, as a VM's policy asks."""

from __future__ import annotations

from kvmhooks.isolate.engine.knob import ORDINARY, Knob, PolicyKnob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvmhooks.isolate.engine.knob import View
    from kvmhooks.isolate.record.state import Held, Record
    from kvmhooks.isolate.system.system import System


def knobs(system: System, view: View, records: Mapping[str, Record]) -> Iterator[Knob]:
    """Yield the I/O scheduler and the queue's depth of the VMs' disks: ABI/stable/sysfs-block."""
    devices = {disk: vm for vm in view.held for disk in vm.claim.disks}
    names = {system.block_device(disk): disk for disk in devices}
    for key in records:
        if key.startswith("disk/"):
            names.setdefault(key.split("/")[1], "")
    for name in sorted(names):
        if name:
            queue = f"sys/class/block/{name}/queue"
            yield _DiskKnob(
                f"disk/{name}/scheduler", f"{queue}/scheduler", setting="storage.scheduler",
                disk=names[name],
            )  # fmt: skip
            yield _Depth(
                f"disk/{name}/requests", f"{queue}/nr_requests", setting="storage.requests",
                disk=names[name], follows=bool(view.requested("storage.scheduler")),
            )  # fmt: skip


class _DiskKnob(PolicyKnob):
    """Only the claims whose disk it is have a say."""

    __slots__ = ("disk",)

    def __init__(
        self, key: str, path: str, *, setting: str, disk: str, order: int = ORDINARY
    ) -> None:
        super().__init__(key, path, setting=setting, order=order)
        self.disk = disk

    def target(self, original: str, view: View) -> str:
        for vm in view.held:
            if self.disk in vm.claim.disks and vm.claim.setting(self.setting):
                return vm.claim.setting(self.setting)
        return original

    def askers(self, original: str, view: View, system: System) -> list[Held]:  # noqa: ARG002
        value = self.target("", view)
        return [
            vm
            for vm in view.held
            if value and self.disk in vm.claim.disks and vm.claim.setting(self.setting) == value
        ]


class _Depth(_DiskKnob):
    """The depth of the queue: a change of the scheduler sets it to that scheduler's default."""

    __slots__ = ("follows",)

    is_volatile = True

    def __init__(self, key: str, path: str, *, setting: str, disk: str, follows: bool) -> None:
        super().__init__(key, path, setting=setting, disk=disk, order=ORDINARY + 1)
        self.follows = follows
        """We have set the scheduler, so that the kernel has set this."""

    def is_forced(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        return self.follows

    def is_by_kernel(self, current: str, system: System) -> bool:  # noqa: ARG002 -- the base's
        """Return False: with the scheduler it was set and read back."""
        return False
