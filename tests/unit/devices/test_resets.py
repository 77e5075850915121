"""The reset of devices, and what else is reset with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmhooks.cli.main import main
from kvmhooks.devices.resets import Reset, reset_of, sentences_about
from kvmhooks.host.bus.devices import PciDevice
from kvmhooks.values import PciAddress
from tests.fakedevices import FakePci
from tests.fakehost import write_host

GPU, SOUND, USB = (PciAddress.parse(f"0000:65:00.{at}") for at in range(3))
ALONE = PciAddress.parse("0000:66:00.0")
Methods = tuple[str, ...] | None


def device(address: PciAddress, methods: Methods, *, can_reset: bool | None = None) -> PciDevice:
    """A device with these methods; of none the kernel shows no file."""
    if can_reset is None:
        can_reset = bool(methods)
    return PciDevice(address, reset_methods=methods, can_reset=can_reset)


CASES: dict[str, tuple[dict[PciAddress, Methods], Reset]] = {
    "a function-level reset": (
        {GPU: ("flr", "bus"), SOUND: None},
        Reset("function", ("flr", "bus")),
    ),
    "power management": ({GPU: ("pm",), SOUND: None}, Reset("function", ("pm",))),
    "alone on its bus": ({GPU: ("bus",), ALONE: ("flr",)}, Reset("bus", ("bus",))),
    "the first of a bus": (
        {GPU: ("bus",), SOUND: ("flr",), USB: None},
        Reset("bus", ("bus",), (SOUND, USB)),
    ),
    "one after the first": ({SOUND: ("bus",), GPU: None}, Reset("bus", (), (SOUND,))),
    "a CXL bus": ({GPU: ("cxl_bus",), SOUND: None}, Reset("bus", ("cxl_bus",), (SOUND,))),
    "the root bus": ({GPU: None, SOUND: ("flr",)}, Reset("none")),
    "nothing": ({GPU: None}, Reset("none")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_reset_is_by_function_by_bus_or_not_at_all(case: str) -> None:
    """The methods that the kernel names tell, those of what is on the same bus as well."""
    methods, expected = CASES[case]
    devices = [device(*method) for method in methods.items()]
    asked = devices[-1] if case == "one after the first" else devices[0]
    assert reset_of(asked, devices) == expected


def test_a_kernel_that_does_not_say_how_is_not_guessed_at() -> None:
    """Before 5.15 there is only whether it can be reset."""
    assert reset_of(device(GPU, None, can_reset=True), []) == Reset("unknown")
    assert reset_of(device(GPU, None, can_reset=False), []) == Reset("none")
    assert [*sentences_about(Reset("unknown"))] == [*sentences_about(Reset("function"))] == []


def test_the_side_effects_of_a_bus_reset_are_named() -> None:
    """It makes a difference whether the VM has what is reset with it."""
    reset = Reset("bus", ("bus",), (SOUND, USB))
    assert [*sentences_about(reset, [SOUND, USB])] == [
        f"is reset with its whole bus, so together with {SOUND}, {USB}"
    ]
    (sentence,) = sentences_about(reset, [SOUND])
    assert sentence == (
        f"is reset only with its whole bus, so together with {SOUND}, {USB}: a VM that has not all "
        "of them leaves it as it is for the next"
    )
    assert [*sentences_about(Reset("bus", ("bus",)))] == [
        "is reset with its bus, on which it is alone"
    ]


def test_the_verb_tells_how_each_is_reset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a word, with a note where a person should know more, and for programs."""
    pci = (
        FakePci("0000:65:00.0", iommu_group=1, reset="bus"),
        FakePci("0000:65:00.1", iommu_group=1, reset="flr"),
        FakePci("0000:66:00.0", iommu_group=2),
    )
    root = str(write_host(tmp_path, pci=pci))
    assert main(["devices", "--root", root]) == 0
    assert capsys.readouterr().out == (
        "0000:65:00.0  free    8086:1572  no driver  group 1  bus\n"
        "    goes with 0000:65:00.1\n"
        "    note: is reset with its whole bus, so together with 0000:65:00.1\n"
        "0000:65:00.1  free    8086:1572  no driver  group 1  flr\n"
        "    goes with 0000:65:00.0\n"
        "0000:66:00.0  free    8086:1572  no driver  group 2  no reset\n"
        "    note: cannot be reset: after a VM it may not work again before the host restarts\n"
    )
    assert main(["devices", "--root", root, "--json"]) == 0
    assert [entry["reset"] for entry in json.loads(capsys.readouterr().out)] == [
        {"kind": "bus", "shared_with": ["0000:65:00.1"]},
        {"kind": "function", "shared_with": []},
        {"kind": "none", "shared_with": []},
    ]
