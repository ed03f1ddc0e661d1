"""What a flasher does on its board, done here by a shell: the judge of what unwrapping makes.

The steps are those that balenaOS documents for ``resin-init-flasher``, without those that need
the board. They are done to directories with what mtools took out of the boot partitions.
"""

import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from boot_volume import extract
from builders import ENVIRONMENT, BuiltImage, run

_BOOTLOADERS = """
set -e
. "$CONF"
write() {
    [ -z "$1" ] || dd if="$OUTER/$2" of="$DISK" bs="$3" seek="$4" conv=notrunc status=none
}
case "$BOOTLOADER_FLASH_DEVICE" in mtd*) ;; *)
    write "$BOOTLOADER_FLASH_DEVICE" "$BOOTLOADER_IMAGE" \
        "$BOOTLOADER_BLOCK_SIZE_OFFSET" "$BOOTLOADER_SKIP_OUTPUT_BLOCKS"
    write "$BOOTLOADER_FLASH_DEVICE_1" "$BOOTLOADER_IMAGE_1" \
        "$BOOTLOADER_BLOCK_SIZE_OFFSET_1" "$BOOTLOADER_SKIP_OUTPUT_BLOCKS_1"
esac
"""

_FILES = """
set -e
. "$CONF"
if [ -d "$OUTER/$BALENA_SPLASH_CONFIG" ]; then
    mkdir -p "$INNER/$BALENA_SPLASH_CONFIG"
    cp -r "$OUTER/$BALENA_SPLASH_CONFIG"/* "$INNER/$BALENA_SPLASH_CONFIG"
fi
for name in "$BALENA_NM_CONFIG" "$BALENA_NM_DISPATCHER" "$BALENA_PROXY_CONFIG"; do
    if [ -d "$OUTER/$name" ]; then
        rm -rf "$INNER/$name"
        cp -r "$OUTER/$name" "$INNER"
    fi
done
config="$INTERNAL_DEVICE_BOOTLOADER_CONFIG"
if [ -n "$config" ] && [ -f "$OUTER/$config" ]; then
    cp "$OUTER/$config" "$INNER/$INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH"
    if [ -f "$OUTER/$config.sig" ]; then
        cp "$OUTER/$config.sig" "$INNER/$INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH.sig"
    fi
    if [ -n "$INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH" ]; then
        cp "$OUTER/$config" "$INNER/$INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH"
    fi
fi
if [ -f "$OUTER/$BALENA_BOOTLOADER_CONFIG" ]; then
    cp "$OUTER/$BALENA_BOOTLOADER_CONFIG" "$INNER"
fi
for program in "$(dirname "$INNER/$INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH")"/*.efi; do
    rm -f "$program.secureboot"
done
jq 'del(.installer)' "$OUTER/config.json" > "$INNER/config.json"
"""


@dataclass(frozen=True, slots=True)
class Installed:
    """An internal disk after the flasher has run."""

    disk: Path
    """All of it, its boot partition as it was before."""

    boot: Path
    """The files of its boot partition, in a directory."""


def install(flasher: BuiltImage, folder: Path) -> Installed:
    """Do what ``flasher`` does, to a copy of the image it carries, below a new ``folder``."""
    folder.mkdir()
    disk = carried_image(flasher, folder / "disk.img")
    outer = extract(flasher, folder / "outer")
    settings = folder / "settings"
    settings.write_bytes(read_root(flasher, "/etc/resin-init-flasher.conf", folder))
    given = {"CONF": settings, "OUTER": outer}
    _run(_BOOTLOADERS, {**given, "DISK": disk})
    assert flasher.inner is not None
    boot = extract(replace(flasher.inner, path=disk), folder / "inner")
    _run(_FILES, {**given, "INNER": boot})
    return Installed(disk, boot)


def carried_image(flasher: BuiltImage, out: Path) -> Path:
    """The image that ``flasher`` carries, taken out by debugfs."""
    assert flasher.inner is not None
    out.write_bytes(read_root(flasher, f"/opt/{flasher.inner.path.name}", out.parent))
    return out


def read_root(flasher: BuiltImage, path: str, folder: Path) -> bytes:
    """A file of the flasher's root filesystem, read by debugfs."""
    out = folder / "dumped"
    run("debugfs", "-R", f"dump {path} {out}", root_filesystem(flasher))
    content = out.read_bytes()
    out.unlink()
    return content


def root_filesystem(flasher: BuiltImage) -> str:
    """Where debugfs finds the flasher's root filesystem."""
    [root] = [each for each in flasher.partitions if each.label == "flash-rootA"]
    return f"{flasher.path}?offset={root.extent.start}"


def _run(script: str, given: dict[str, Path]) -> None:
    environment = {**ENVIRONMENT, "PATH": os.environ["PATH"]}
    environment |= {name: str(path) for name, path in given.items()}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
