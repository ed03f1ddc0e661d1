"""What is unwrapped is what the flasher's own steps, done by a shell, leave on a board's disk."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import flasher_steps
import pytest
from boot_tree import Carried
from boot_volume import extract, file_tree
from builders import BuiltImage, Layout, build_image, run
from commandline import run as balenaflash

pytestmark = pytest.mark.needs("dosfstools", "e2fsprogs", "jq", "mtools", "parted")

WIFI = b"[connection]\nid=lab\ntype=wifi\n\n[wifi]\nssid=Lab\n"
PROXY = b"base {\n log_debug = off;\n}\n"
NO_LEGACY: Mapping[str, str | None] = {"INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH": None}
INSTALLER_CONFIG = b"""{
    "deviceType": "generic-amd64",
    "installer": {"target_devices": "sda mmcblk*", "migrate": {"force": true}},
    "apiEndpoint": "https://api.balena-cloud.com",
    "appUpdatePollInterval": 900000.0,
    "x-unknown": [1, {"installer": "stays"}]
}
"""
INSTALLER_CONFIG_AFTER = b"""{
    "deviceType": "generic-amd64",
    "apiEndpoint": "https://api.balena-cloud.com",
    "appUpdatePollInterval": 900000.0,
    "x-unknown": [
        1,
        {
            "installer": "stays"
        }
    ]
}
"""
"""With arrays laid out as every edit of config.json here lays them out."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A flasher of one of the kinds there are."""

    layout: Layout
    boot_files: Mapping[str, bytes | None] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)


KINDS = {
    "genericx86": Kind(
        Layout.MSDOS_FAT16,
        boot_files={"/grub.cfg_internal.sig": b"signature of the settings"},
        carried=Carried(
            boot_files={"/grub/grub.cfg": b"old", "/EFI/BOOT/grub.cfg.sig": b"of the old ones"}
        ),
    ),
    "generic GPT": Kind(
        Layout.GPT_FAT16,
        boot_files={"/grub.cfg_internal": None, "/splash/boot/second.png": b"a second picture"},
        carried=Carried(
            boot_files={
                "/grub.cfg_internal": None,
                "/EFI/BOOT/bootx64.efi.secureboot": b"signed program",
                "/EFI/BOOT/shim.efi.secureboot": b"stands alone",
                "/splash/boot/first.png": b"a first picture",
            },
            settings={**NO_LEGACY, "USE_LUKS": "1"},
        ),
    ),
    "beaglebone": Kind(
        Layout.MSDOS_FAT16,
        boot_files={
            "/uEnv.txt_internal": b"mmcdev=1\n",
            "/uEnv.txt": b"mmcdev=0\n",
            "/resinOS_uEnv.txt": b"resin_root_part=2\n",
            "/MLO": bytes(range(256)) * 300,
            "/u-boot.img": b"u-boot" * 70_001,
        },
        carried=Carried(
            boot_files={"/uEnv.txt": b"mmcdev=0\n"},
            settings={
                **NO_LEGACY,
                "INTERNAL_DEVICE_KERNEL": "mmcblk1",
                "INTERNAL_DEVICE_BOOTLOADER_CONFIG": "uEnv.txt_internal",
                "INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH": "/uEnv.txt",
                "BOOTLOADER_FLASH_DEVICE": "mmcblk1",
                "BOOTLOADER_IMAGE": "MLO",
                "BOOTLOADER_BLOCK_SIZE_OFFSET": "128k",
                "BOOTLOADER_SKIP_OUTPUT_BLOCKS": "1",
                "BOOTLOADER_FLASH_DEVICE_1": "mmcblk1",
                "BOOTLOADER_IMAGE_1": "u-boot.img",
                "BOOTLOADER_BLOCK_SIZE_OFFSET_1": "512",
                "BOOTLOADER_SKIP_OUTPUT_BLOCKS_1": "768",
            },
        ),
    ),
    "installer": Kind(
        Layout.GPT_BOARD,
        boot_files={"/config.json": INSTALLER_CONFIG},
        carried=Carried(settings=NO_LEGACY),
    ),
    "networks and proxy": Kind(
        Layout.MSDOS_FAT32,
        boot_files={
            "/system-connections/lab": WIFI,
            "/system-connections/certs/ca.pem": b"certificate",
            "/system-proxy/redsocks.conf": PROXY,
            "/dispatcher.d/10-lab": b"#!/bin/sh\n",
        },
        carried=Carried(
            boot_files={
                "/system-connections/of-the-image": b"goes",
                "/system-connections/certs/old/ca.pem": b"goes, too",
                "/system-proxy/no_proxy": b"goes",
                "/dispatcher.d/99-old": b"goes",
            },
            settings=NO_LEGACY,
        ),
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def flasher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """A flasher of each kind; tests leave it as it is."""
    kind = KINDS[request.param]
    path = tmp_path_factory.mktemp("flasher") / "flasher.img"
    return build_image(
        path, kind.layout, flasher=True, boot_files=kind.boot_files, carried=kind.carried
    )


@pytest.fixture(scope="module")
def unwrapped(flasher: BuiltImage, tmp_path_factory: pytest.TempPathFactory) -> BuiltImage:
    """What it was unwrapped into."""
    out = tmp_path_factory.mktemp("unwrapped") / "raw.img"
    result = balenaflash("unwrap", flasher.path, out)
    assert result.returncode == 0, result.stderr
    assert flasher.inner is not None
    return replace(flasher.inner, path=out)


def canonical(config: bytes) -> str:
    """A config.json as jq writes it on one line, keys in their order."""
    return subprocess.run(
        ["jq", "-c", "."], input=config, capture_output=True, check=True
    ).stdout.decode()


def test_it_is_what_the_flashers_own_steps_leave(
    flasher: BuiltImage, unwrapped: BuiltImage, tmp_path: Path
) -> None:
    installed = flasher_steps.install(flasher, tmp_path / "board")
    found = file_tree(extract(unwrapped, tmp_path / "found"))
    expected = file_tree(installed.boot)
    # jq lays the file out anew; what it says is to be the same.
    configs = (canonical(found.pop("/config.json")), canonical(expected.pop("/config.json")))
    assert configs[0] == configs[1]
    assert found == expected
    boot = unwrapped.boot_extent
    for skip, length in ((0, boot.start), (boot.end, unwrapped.path.stat().st_size - boot.end)):
        run("cmp", f"--ignore-initial={skip}", f"--bytes={length}", unwrapped.path, installed.disk)
    assert unwrapped.path.stat().st_size == installed.disk.stat().st_size


def test_its_filesystems_are_sound(unwrapped: BuiltImage, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    with unwrapped.path.open("rb") as file:
        file.seek(unwrapped.boot_extent.start)
        boot.write_bytes(file.read(unwrapped.boot_extent.size))
    run("fsck.vfat", "-n", boot)


def test_config_json_keeps_its_text_but_for_installer(
    flasher: BuiltImage, unwrapped: BuiltImage, tmp_path: Path
) -> None:
    config = file_tree(extract(unwrapped, tmp_path / "found"))["/config.json"]
    before = flasher.boot_files["/config.json"]
    if b"installer" in before:
        before = INSTALLER_CONFIG_AFTER
    assert config == before
