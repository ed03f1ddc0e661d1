"""What lies in the boot partition of a test image, and in a flasher's root filesystem.

One tree serves every layout, so that every test can run on every layout: a board that boots
from EFI carries no Raspberry Pi files in truth, and the other way round.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Board:
    """What ``device-type.json`` says of a board; rows of balenaOS's own board repositories."""

    slug: str
    machine: str
    name: str
    arch: str


@dataclass(frozen=True, slots=True)
class Carried:
    """What a flasher carries, as far as it differs from what all carry here."""

    boot_files: Mapping[str, bytes | None] = field(default_factory=dict)
    """Of the inner image, as in `boot_files`."""

    settings: Mapping[str, str | None] = field(default_factory=dict)
    """Of the flasher, as in `flasher_conf`."""

    root_files: Mapping[str, bytes] = field(default_factory=dict)
    """Files more in the flasher's root filesystem, by absolute path."""


INTEL_NUC = Board("intel-nuc", "genericx86-64", "Intel NUC", "amd64")
RASPBERRY_PI = Board("raspberrypi4-64", "raspberrypi4-64", "Raspberry Pi 4", "aarch64")
GENERIC_AMD64 = Board("generic-amd64", "generic-amd64", "Generic x86_64 (GPT)", "amd64")
JETSON = Board(
    "jetson-agx-orin-devkit-64gb",
    "jetson-agx-orin-devkit-64gb",
    "Nvidia Jetson AGX Orin 64GB Devkit",
    "aarch64",
)

OS_VERSION = "6.5.31+rev1"
FLAG_TEXT = b"DO NOT REMOVE THIS FILE\n"
UNLISTED = frozenset({"/config.json", "/balenaos.fingerprint"})
"""Files that the fingerprint never lists (meta-balena, image-balena.bbclass)."""

CONFIG: Mapping[str, object] = {
    "applicationName": "lab",
    "applicationId": 1234567,
    "deviceType": "intel-nuc",
    "userId": 42,
    "username": "g_operator",
    "appUpdatePollInterval": 900000,
    "listenPort": 48484,
    "vpnPort": 443,
    "apiEndpoint": "https://api.balena-cloud.com",
    "vpnEndpoint": "cloudlink.balena-cloud.com",
    "registryEndpoint": "registry2.balena-cloud.com",
    "deltaEndpoint": "https://delta.balena-cloud.com",
    "apiKey": "f00dfacef00dfacef00dfacef00dface",
    "developmentMode": "true",
    "hostname": "bench-7",
    "os": {
        "sshKeys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExample lab"],
        "network": {"connectivity": {"interval": "300"}},
    },
    "x-lab-note": "kept as it is",
}

GRUB_INTERNAL = b"""\
set default=boot
set timeout=0
search --no-floppy --set=root --label resin-rootA
menuentry 'boot' {
    linux /boot/bzImage root=LABEL=resin-rootA ro quiet rootwait
}
"""
GRUB_RAW = b"""\
set default=boot
set timeout=3
menuentry 'boot' {
    linux /boot/bzImage root=LABEL=resin-rootA ro
}
"""
GRUB_EXTERNAL = b"""\
set default=boot
set timeout=3
search --no-floppy --set=root --label flash-rootA
menuentry 'flasher' {
    linux /boot/bzImage root=LABEL=flash-rootA ro rootwait flasher
}
"""
OS_RELEASE = """\
ID="balena-os"
NAME="balenaOS"
VERSION="{version}"
VERSION_ID="{version}"
PRETTY_NAME="balenaOS {version}"
MACHINE="{machine}"
META_BALENA_VERSION="6.5.31"
SLUG="{slug}"
"""
FLASHER_CONF = """\
# Shell variables read by resin-init-flasher
INTERNAL_DEVICE_KERNEL="nvme0n1 sda sdb mmcblk0 mmcblk1"
INTERNAL_DEVICE_BOOTLOADER_CONFIG=grub.cfg_internal
INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH=/EFI/BOOT/grub.cfg
INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH=/grub/grub.cfg
BALENA_IMAGE=balena-image-{machine}.balenaos-img
BOOTLOADER_FLASH_DEVICE=
BOOTLOADER_IMAGE=
BOOTLOADER_BLOCK_SIZE_OFFSET=
BOOTLOADER_SKIP_OUTPUT_BLOCKS=
BALENA_SPLASH_CONFIG=splash
BALENA_BOOTLOADER_CONFIG=resinOS_uEnv.txt
BALENA_NM_CONFIG=system-connections
BALENA_NM_DISPATCHER=dispatcher.d
BALENA_PROXY_CONFIG=system-proxy
"""
WIFI_SAMPLE = b"""\
# Rename this file, without .ignore, to use it.
[connection]
id=balena-wifi
type=wifi

[wifi]
mode=infrastructure
ssid=My_Wifi_Ssid

[wifi-security]
key-mgmt=wpa-psk
psk=super_secret_wifi_password

[ipv4]
method=auto
"""


def noise(name: str, size: int) -> bytes:
    """``size`` bytes that look like a program; the same for the same name."""
    return random.Random(name).randbytes(size)  # noqa: S311 -- content, not a key


def boot_files(
    board: Board, *, flasher: bool, replaced: Mapping[str, bytes | None] | None = None
) -> dict[str, bytes]:
    """Every file of a boot partition by its absolute path, the fingerprint among them.

    ``replaced`` adds files, takes the place of some or, with ``None``, leaves some out; the
    fingerprint counts them in, unless it is itself replaced.
    """
    image = "balena-image-flasher" if flasher else "balena-image"
    files = {
        "/config.json": json.dumps({**CONFIG, "deviceType": board.slug}).encode(),
        "/device-type.json": _device_type(board, image),
        "/image-version-info": f"{image}-{board.machine}\n".encode(),
        f"/{image}": FLAG_TEXT,
        "/splash/balena-logo.png": b"\x89PNG\r\n\x1a\n" + noise("logo", 9000),
        "/system-connections/balena-sample.ignore": b"[connection]\nid=balena-sample\n",
        "/system-connections/balena-wifi.ignore": WIFI_SAMPLE,
        "/system-proxy/README.ignore": b"redsocks.conf goes here\n",
        "/EFI/BOOT/bootx64.efi": b"MZ" + noise("bootx64", 650_000),
        "/EFI/BOOT/grub.cfg": GRUB_EXTERNAL if flasher else GRUB_RAW,
        "/EFI/BOOT/grubenv": b"# GRUB Environment Block\n".ljust(1024, b"#"),
        "/EFI/BOOT/grub_extraenv": b"# GRUB Environment Block\n".ljust(1024, b"#"),
        "/grub.cfg_internal": GRUB_INTERNAL,
        "/extra_uEnv.txt": b"",
        **{f"/EFI/BOOT/x86_64-efi/{name}.mod": noise(name, size) for name, size in MODULES},
        **{f"/overlays/{name}.dtbo": noise(name, 1500) for name in OVERLAYS},
    }
    if not flasher:
        text = OS_RELEASE.format(version=OS_VERSION, machine=board.machine, slug=board.slug)
        files["/os-release"] = text.encode()
    kept = _replace(files, replaced)
    return {"/balenaos.fingerprint": fingerprint(kept), **kept}


MODULES = (
    *(("ext2", 9240), ("fat", 8112), ("linux", 11032), ("normal", 143_680)),
    *(("part_gpt", 4840), ("part_msdos", 4920), ("search_fs_label", 3300)),
)
OVERLAYS = ("disable-bt", "i2c-rtc", "vc4-kms-v3d", "w1-gpio-pullup-with-a-long-name")


def fingerprint(files: Mapping[str, bytes]) -> bytes:
    """Lines of ``md5sum``, sorted by path, of every file but those in ``UNLISTED``."""
    listed = sorted(path for path in files if path not in UNLISTED)
    lines = (f"{hashlib.md5(files[path]).hexdigest()}  {path[1:]}\n" for path in listed)  # noqa: S324 -- balenaOS's format
    return "".join(lines).encode()


def root_files(board: Board) -> dict[str, bytes]:
    """Some files of a host OS; one has zero blocks inside, which a sparse copy makes holes."""
    text = OS_RELEASE.format(version=OS_VERSION, machine=board.machine, slug=board.slug)
    return {
        "/etc/os-release": text.encode(),
        "/boot/bzImage": noise("bzImage", 1_500_000),
        "/usr/lib/firmware/padded.bin": noise("head", 5000) + bytes(60_000) + noise("tail", 5000),
        "/hostapps/0/boot/fingerprint": b"0\n",
    }


def _replace(
    files: Mapping[str, bytes], replaced: Mapping[str, bytes | None] | None
) -> dict[str, bytes]:
    changed = {**files, **(replaced or {})}
    return {path: content for path, content in changed.items() if content is not None}


def flasher_conf(board: Board, settings: Mapping[str, str | None] | None = None) -> bytes:
    """``/etc/resin-init-flasher.conf`` as the genericx86 family ships it.

    ``settings`` (name to value, quoted as needed) takes the place of some or adds some; ``None``
    leaves one out.
    """
    text = FLASHER_CONF.format(machine=board.machine)
    given = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    lines = (
        f"{name}={value}"
        for name, value in {**given, **(settings or {})}.items()
        if value is not None
    )
    return "\n".join([text.partition("\n")[0], *lines, ""]).encode()


def _device_type(board: Board, image: str) -> bytes:
    content = {
        "slug": board.slug,
        "version": 1,
        "name": board.name,
        "arch": board.arch,
        "state": "released",
        "yocto": {
            "machine": board.machine,
            "image": image,
            "fstype": "balenaos-img",
            "version": "yocto-kirkstone",
            "deployArtifact": f"{image}-{board.machine}.balenaos-img",
        },
        "configuration": {"config": {"partition": {"primary": 1}, "path": "/config.json"}},
    }
    return json.dumps(content, indent=2).encode() + b"\n"
