"""The files in a sample image: all those that balenaOS tools read.

They are those of an image of the device type ``generic-amd64`` (meta-balena v8.0.2, balena-
generic), raw or flasher. There is no operating system in it: in the place of each program there
is a text that says so.
"""

import json
import struct
import zlib
from collections.abc import Mapping

SLUG = "generic-amd64"
_NAME = "Generic x86_64 (GPT)"
_VERSION = "6.5.31+rev1"
_RAW_IMAGE, _FLASHER_IMAGE = "balena-image", "balena-image-flasher"
INNER_NAME = f"{_RAW_IMAGE}-{SLUG}.balenaos-img"
"""File name of the image that a flasher carries."""

_DEVICES = "nvme0n1 sda mmcblk0"

_CONFIG: Mapping[str, object] = {
    "applicationName": "sample",
    "applicationId": 1000001,
    "deviceType": SLUG,
    "userId": 1001,
    "username": "sample",
    "appUpdatePollInterval": 900000,
    "listenPort": 48484,
    "vpnPort": 443,
    "apiEndpoint": "https://api.balena-cloud.com",
    "vpnEndpoint": "cloudlink.balena-cloud.com",
    "registryEndpoint": "registry2.balena-cloud.com",
    "deltaEndpoint": "https://delta.balena-cloud.com",
    "apiKey": "sample-image-without-a-key",
}
"""As ``balena config generate`` writes it."""

_OS_RELEASE = f"""\
ID="balena-os"
NAME="balenaOS"
VERSION="{_VERSION}"
VERSION_ID="{_VERSION}"
PRETTY_NAME="balenaOS {_VERSION}"
MACHINE="{SLUG}"
META_BALENA_VERSION="6.5.31"
SLUG="{SLUG}"
"""

_GRUB = """\
# {origin}
set default=boot
set timeout={timeout}
search --no-floppy --set=root --label {root}
menuentry 'boot' {{
    linux /boot/bzImage root=LABEL={root} ro rootwait {arguments}
}}
"""

_FLASHER_SETTINGS = f"""\
INTERNAL_DEVICE_KERNEL="{_DEVICES}"
INTERNAL_DEVICE_BOOTLOADER_CONFIG=grub.cfg_internal
INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH=/EFI/BOOT/grub.cfg
BALENA_IMAGE={INNER_NAME}
BOOTLOADER_FLASH_DEVICE=
BOOTLOADER_IMAGE=
BOOTLOADER_BLOCK_SIZE_OFFSET=
BOOTLOADER_SKIP_OUTPUT_BLOCKS=
BOOTLOADER_FLASH_DEVICE_1=
BOOTLOADER_IMAGE_1=
BOOTLOADER_BLOCK_SIZE_OFFSET_1=
BOOTLOADER_SKIP_OUTPUT_BLOCKS_1=
BALENA_SPLASH_CONFIG=splash
BALENA_BOOTLOADER_CONFIG=resinOS_uEnv.txt
BALENA_NM_CONFIG=system-connections
BALENA_NM_DISPATCHER=dispatcher.d
BALENA_PROXY_CONFIG=system-proxy
"""
"""As ``resin-init-flasher.bb`` writes it."""

_ETHERNET = """\
[connection]
id=sample
type=ethernet

[ipv4]
method=auto
"""

_WIFI = """\
# Copied under a name without .ignore, with the right ssid and psk, this is used.
[connection]
id=balena-wifi
type=wifi

[wifi]
mode=infrastructure
ssid=My_Wifi_Ssid

[wifi-security]
key-mgmt=wpa-psk
psk=my-wifi-password

[ipv4]
method=auto

[ipv6]
addr-gen-mode=stable-privacy
method=auto
"""

_GRUB_ENVIRONMENT_SIZE = 1024  # bytes, padded with "#"; grub-editenv refuses any other


def boot_files() -> dict[str, bytes]:
    """Content of a raw image's boot partition by absolute path, without its fingerprint."""
    grub = _grub("Made by the image build", "resin-rootA", timeout=3, arguments="quiet")
    return {
        **_common_boot_files(_RAW_IMAGE),
        "/EFI/BOOT/grub.cfg": grub,
        "/os-release": _OS_RELEASE.encode(),
    }


def flasher_boot_files() -> dict[str, bytes]:
    """Content of a flasher's boot partition, with a network for the board."""
    grub = _grub("Starts the flasher", "flash-rootA", timeout=3, arguments="flasher")
    return {
        **_common_boot_files(_FLASHER_IMAGE),
        "/EFI/BOOT/grub.cfg": grub,
        "/system-connections/sample": _ETHERNET.encode(),
    }


def _common_boot_files(image: str) -> dict[str, bytes]:
    environment = b"# GRUB Environment Block\n".ljust(_GRUB_ENVIRONMENT_SIZE, b"#")
    return {
        "/EFI/BOOT/bootx64.efi": _placeholder("boot loader", 262_144),
        "/EFI/BOOT/grub_extraenv": environment,
        "/EFI/BOOT/grubenv": environment,
        f"/{image}": b"DO NOT REMOVE THIS FILE\n",
        "/config.json": _json(_CONFIG),
        "/device-type.json": _json(_device_type(image)),
        "/extra_uEnv.txt": b"",
        "/grub.cfg_internal": _grub("For internal storage", "resin-rootA", timeout=0, arguments=""),
        "/image-version-info": f"{image}-{SLUG}\n".encode(),
        "/splash/balena-logo.png": logo(160, 90),
        "/system-connections/balena-wifi.ignore": _WIFI.encode(),
        "/system-proxy/README.ignore": b"redsocks.conf and no_proxy go here\n",
    }


def flasher_root_files() -> dict[str, bytes]:
    """Content of a flasher's root filesystem, without the image it carries."""
    hook = b"#!/bin/sh\n\nset -e\n\nexit 0\n"
    return {
        **root_files(),
        "/etc/resin-init-flasher.conf": _FLASHER_SETTINGS.encode(),
        "/usr/bin/resin-init-flasher-board": hook,
    }


def root_files() -> dict[str, bytes]:
    """Content of the root filesystem by absolute path."""
    return {
        "/boot/bzImage": _placeholder("kernel", 1_048_576),
        "/etc/hostname": b"balena\n",
        "/etc/issue": f"balenaOS {_VERSION} \\n \\l\n".encode(),
        "/etc/os-release": _OS_RELEASE.encode(),
    }


def logo(width: int, height: int) -> bytes:
    """A PNG picture of a blue gradient, ``width`` by ``height`` pixels.

    PNG specification, 3rd edition: signature (5.2), IHDR (11.2.1), IDAT, IEND.
    """
    rows = (
        b"\0" + b"".join(bytes((row % 64, column // 2 % 256, 160)) for column in range(width))
        for row in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits each of R, G and B
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", header),
            _png_chunk(b"IDAT", zlib.compress(b"".join(rows), 9)),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _grub(origin: str, root: str, *, timeout: int, arguments: str) -> bytes:
    text = _GRUB.format(origin=origin, root=root, timeout=timeout, arguments=arguments)
    return text.encode()


def _placeholder(what: str, size: int) -> bytes:
    """Bytes without a hole in the place of a program."""
    text = f"This is a sample image: there is no {what} in it. ".encode()
    return (text * (size // len(text) + 1))[:size]


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"


def _device_type(image: str) -> dict[str, object]:
    return {
        "slug": SLUG,
        "version": 1,
        "name": _NAME,
        "arch": "amd64",
        "state": "released",
        "yocto": {
            "machine": SLUG,
            "image": image,
            "fstype": "balenaos-img",
            "version": "yocto-kirkstone",
            "deployArtifact": f"{image}-{SLUG}.balenaos-img",
        },
        "configuration": {"config": {"partition": {"primary": 1}, "path": "/config.json"}},
    }
