"""Flashers that ``unwrap`` refuses, with what it tells."""

import json
from pathlib import Path

import pytest
from boot_volume import edited
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from flashers import SETTINGS, put
from imagecopies import MakeImage


@pytest.fixture
def flasher(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16, flasher=True)


@pytest.mark.parametrize(
    ("file", "skip", "code"),
    [("missing.img", "1", "bootloader-missing"), ("uboot.img", "9999", "bootloader-out-of-range")],
)
def test_a_bootloader_that_cannot_be_written_is_refused(
    balenaflash: RunBalenaflash,
    flasher: BuiltImage,
    tmp_path: Path,
    file: str,
    skip: str,
    code: str,
) -> None:
    with edited(flasher) as volume:
        volume.write_file("/uboot.img", b"u-boot")
    put(
        flasher,
        SETTINGS,
        "INTERNAL_DEVICE_KERNEL=mmcblk2\nBALENA_IMAGE=balena-image-generic-amd64.balenaos-img\n"
        f"BOOTLOADER_FLASH_DEVICE=mmcblk2\nBOOTLOADER_IMAGE={file}\n"
        f"BOOTLOADER_BLOCK_SIZE_OFFSET=1M\nBOOTLOADER_SKIP_OUTPUT_BLOCKS={skip}\n".encode(),
    )
    answer = balenaflash("unwrap", "--json", flasher.path, tmp_path / "raw.img")
    [problem] = json.loads(answer.stdout)["errors"]
    assert (answer.returncode, problem["code"]) == (3, code)


def test_a_raw_image_is_no_flasher(
    balenaflash: RunBalenaflash, image: MakeImage, tmp_path: Path
) -> None:
    result = balenaflash("unwrap", image(Layout.MSDOS_FAT16).path, tmp_path / "raw.img")
    assert (result.returncode, result.stdout) == (3, "")
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("balenaflash:")] == lines[:1]
    assert "is not a flasher" in lines[0]


@pytest.mark.parametrize("config", [b"{", None])
def test_a_flasher_without_a_valid_config_is_refused(
    balenaflash: RunBalenaflash, flasher: BuiltImage, tmp_path: Path, config: bytes | None
) -> None:
    with edited(flasher) as volume:
        if config is None:
            volume.remove_file("/config.json")
        else:
            volume.write_file("/config.json", config)
    result = balenaflash("unwrap", flasher.path, tmp_path / "raw.img")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("balenaflash: /config.json: ")
