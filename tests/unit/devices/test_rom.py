"""Option ROMs: what is one, and of which device."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvm_launch.prepare.checks import check_roms
from kvmhooks.cli.main import main
from kvmhooks.devices.rom import Image, images_of, mismatch, read_rom
from kvmhooks.errors import HostError, SpecError
from kvmhooks.host import read
from kvmhooks.spec import parse_vm
from tests.fakedevices import FakePci
from tests.fakehost import write_host

GPU = "0000:65:00.0"


def image(
    vendor: int = 0x10DE,
    device: int = 0x2204,
    *,
    code: int = 0,
    is_last: bool = True,
    blocks: int = 1,
    others: tuple[int, ...] = (),
) -> bytes:
    """One image as firmware expects it; ``others`` is the device list of PCI 3.0."""
    data = bytearray(blocks * 512)
    data[:2] = b"\x55\xaa"
    data[0x18:0x1A] = (0x40).to_bytes(2, "little")
    data[0x40:0x44] = b"PCIR"
    data[0x44:0x46] = vendor.to_bytes(2, "little")
    data[0x46:0x48] = device.to_bytes(2, "little")
    data[0x4C] = 3
    if others:
        data[0x48:0x4A] = (0x20).to_bytes(2, "little")
        listed = b"".join(number.to_bytes(2, "little") for number in (*others, 0))
        data[0x60 : 0x60 + len(listed)] = listed
    data[0x50:0x52] = blocks.to_bytes(2, "little")
    data[0x54] = code
    data[0x55] = 0x80 if is_last else 0
    return bytes(data)


IDS = st.integers(1, 0xFFFF)
IMAGES = st.tuples(
    IDS, IDS, st.sampled_from((0, 3)), st.integers(1, 9), st.lists(IDS, max_size=4).map(tuple)
)


@given(st.lists(IMAGES, min_size=1, max_size=4))
def test_what_is_written_is_read(
    described: list[tuple[int, int, int, int, tuple[int, ...]]],
) -> None:
    """Each image with whom it is for, to the last, whatever follows that."""
    data = b"".join(
        image(
            vendor,
            device,
            code=code,
            blocks=blocks,
            others=others,
            is_last=at + 1 == len(described),
        )
        for at, (vendor, device, code, blocks, others) in enumerate(described)
    )
    expected = [
        Image(vendor, (device, *others), {0: "BIOS", 3: "UEFI"}[code])
        for vendor, device, code, _, others in described
    ]
    assert [*images_of(data + b"\xff" * 512)] == expected


@given(st.binary(max_size=2000), st.integers(0, 600))
def test_whatever_a_file_holds_is_a_rom_or_an_error(data: bytes, cut: int) -> None:
    """No other exception, and an end."""
    for each in (data, image()[:cut] + data, image(is_last=False)[:cut] + data):
        try:
            assert [*images_of(each)]
        except ValueError:
            continue


WRONG = {
    "no ROM": (b"GIF89a", "found 47 49 at 0x0, expected 55 aa, where an image starts"),
    "an empty file": (b"", "found the end of the file at 0x0, expected 55 aa, where an image"),
    "no data structure": (
        image().replace(b"PCIR", b"NONE"),
        "found no PCIR at 0x40, where the image at 0x0 has it",
    ),
    "an image that is missing": (image(is_last=False), "found the end of the file at 0x200"),
    "an NVIDIA dump with its own header": (
        b"NVGI" + bytes(508) + image(),
        "found 4e 56 at 0x0, expected 55 aa",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_no_rom_is_told_with_the_place(case: str, tmp_path: Path) -> None:
    """And what was expected there."""
    data, message = WRONG[case]
    path = tmp_path / "gpu.rom"
    path.write_bytes(data)
    with pytest.raises(HostError) as caught:
        read_rom(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_rom_is_a_file(tmp_path: Path) -> None:
    """One that is there, and no directory."""
    with pytest.raises(HostError, match="No such file or directory, expected a file with"):
        read_rom(tmp_path / "absent")
    with pytest.raises(HostError, match="expected"):
        read_rom(tmp_path)


def test_a_rom_of_another_device_does_not_fit() -> None:
    """Unless its list has the device."""
    images = tuple(images_of(image(others=(0x2206,))))
    assert mismatch(images, "0x10de", "0x2204") == mismatch(images, "0x10de", "0x2206") == ""
    assert mismatch(images, None, None) == ""
    wrong = "found BIOS image for 10de:2204, expected one for 1002:2204"
    assert mismatch(images, "0x1002", "0x2204") == wrong


def fake_gpu(tmp_path: Path) -> Path:
    """A host with one GPU."""
    gpu = FakePci(GPU, class_="0x030000", vendor="0x10de", device="0x2204", iommu_group=7)
    return write_host(tmp_path / "host", pci=[gpu])


def test_the_verb_checks_a_rom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the one device that is asked about."""
    root, path = str(fake_gpu(tmp_path)), tmp_path / "gpu.rom"
    path.write_bytes(image(code=3))
    assert main(["devices", "--root", root, GPU, "--rom", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"    {path}: UEFI image for 10de:2204\n")
    path.write_bytes(image(device=0x2205))
    assert main(["devices", "--root", root, GPU, "--rom", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"{path}: found BIOS image for 10de:2205, expected one for 10de:2204, which {GPU} is\n"
    )
    assert main(["devices", "--root", root, "--rom", str(path)]) == 2
    assert "found it without one ADDRESS" in capsys.readouterr().err


@pytest.mark.parametrize("named", [f'address = "{GPU}"', 'id = "10de:2204"', "iommu_group = 7"])
def test_kvm_launch_refuses_another_devices_rom(named: str, tmp_path: Path) -> None:
    """The name of the device makes no difference, and nothing has been changed by then."""
    host = read(fake_gpu(tmp_path))
    path = tmp_path / "gpu.rom"
    text = f'name = "a"\ncpu.vcpus = 1\nmemory.size = "1GiB"\n[[pci]]\n{named}\nrom = "{path}"\n'
    spec = parse_vm(text, folder=tmp_path)
    with pytest.raises(SpecError, match=r"pci\[0\]\.rom: found .*No such file"):
        check_roms(spec, host, None)
    path.write_bytes(image())
    check_roms(spec, host, None)
    path.write_bytes(image(vendor=0x1002))
    with pytest.raises(SpecError, match=rf"image for 1002:2204, .*, expected a ROM of {GPU}"):
        check_roms(spec, host, None)
