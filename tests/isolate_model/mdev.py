"""A host whose devices can be divided: Documentation/driver-api/vfio-mediated-device.rst."""

from __future__ import annotations

import errno

from kvmhooks.isolate.resources.mdev import DEVICES, PARENTS
from tests.isolate_model.kernel import Kernel


class MdevKernel(Kernel):
    """One device that can be divided, into three parts of one type or one of another."""

    PARENT = "0000:3b:00.0"
    SMALL, LARGE = "nvidia-35", "nvidia-38"

    def __init__(self) -> None:
        super().__init__("plain", 16, 4)
        self.busy: set[str] = set()
        """Devices whose removal fails."""
        for kind, count in ((self.SMALL, 3), (self.LARGE, 1)):
            self.files[f"{self._kind(kind)}/available_instances"] = str(count)

    def _kind(self, kind: str) -> str:
        return f"{PARENTS}/{self.PARENT}/mdev_supported_types/{kind}"

    def made(self) -> dict[str, str]:
        """The type of each mediated device."""
        return {
            path.split("/")[-2]: target.rpartition("/")[2]
            for path, target in self.links.items()
            if path.startswith(DEVICES) and path.endswith("/mdev_type")
        }

    def write_within(self, seconds: float, path: str, text: str) -> None:
        if not path.startswith((PARENTS, DEVICES)):
            super().write_within(seconds, path, text)
            return
        self.clock += self.takes
        *_, owner, name = path.split("/")
        if name == "create":
            self.step(path)
            self._create(owner, text)
        else:
            assert (name, text) == ("remove", "1")
            self.step(path)
            self._remove(owner)

    def _create(self, kind: str, uuid: str) -> None:
        file = f"{self._kind(kind)}/available_instances"
        if file not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such type", kind)
        if uuid in self.made():
            raise OSError(errno.EEXIST, "it is there", uuid)
        if self.files[file] == "0":
            raise OSError(errno.EUSERS, "no instance is available", kind)
        self.files[file] = str(int(self.files[file]) - 1)
        self.links[f"{DEVICES}/{uuid}"] = f"../../../devices/pci0000:3a/{self.PARENT}/{uuid}"
        self.links[f"{DEVICES}/{uuid}/mdev_type"] = f"../mdev_supported_types/{kind}"

    def _remove(self, uuid: str) -> None:
        kind = self.made()[uuid]
        if uuid in self.busy:
            raise OSError(errno.EAGAIN, "it is being removed", uuid)
        del self.links[f"{DEVICES}/{uuid}"], self.links[f"{DEVICES}/{uuid}/mdev_type"]
        file = f"{self._kind(kind)}/available_instances"
        self.files[file] = str(int(self.files[file]) + 1)
