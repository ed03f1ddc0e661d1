"""The flasher's swap of bootloader settings, made in an image.

A balenaOS flasher copies, as it writes the internal storage of a board, the settings that start
the board from there over those that the image came with (meta-balena, ``resin-init-flasher``).
"""

from dataclasses import dataclass

from balenaflash.boot.files import (
    FileChange,
    make_directories,
    put_file,
    read_file,
)
from balenaflash.boot.paths import parent_of, volume_path
from balenaflash.errors import EditError
from balenaflash.image.fat import FatVolume

INTERNAL_CONFIG = "/grub.cfg_internal"
"""Where balena's generic, intel and up-board families keep it.

It is ``INTERNAL_DEVICE_BOOTLOADER_CONFIG`` of their ``resin-init-flasher.conf``.
"""

ACTIVE_CONFIG = "/EFI/BOOT/grub.cfg"
"""What GRUB reads there: ``INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH``."""

_FLASHER_LABELS = frozenset({"flash-boot", "flash-conf"})  # image_types_balena.bbclass
_FLASHER_FLAG = "/balena-image-flasher"  # balena-image-flasher.bb


@dataclass(frozen=True, slots=True)
class UseInternal:
    """Put the bootloader settings for internal storage in the place of the active ones."""

    source: str = INTERNAL_CONFIG
    target: str = ACTIVE_CONFIG

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; the signature of a signed file goes with it."""
        return use_internal(volume, source=self.source, target=self.target)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"put {volume_path(self.source)} to {volume_path(self.target)}"


def use_internal(
    volume: FatVolume, *, source: str = INTERNAL_CONFIG, target: str = ACTIVE_CONFIG
) -> tuple[FileChange, ...]:
    """Copy ``source`` to ``target``, and ``source.sig`` to ``target.sig`` if there is one.

    Directories that ``target`` needs are made.

    Raises:
        EditError: the volume is the boot partition of a flasher, which would not start any more
            (``flasher-image``); or there is no ``source``.
    """
    _refuse_flasher(volume)
    source, target = volume_path(source), volume_path(target)
    _require_source(volume, source, target)
    changes = [*make_directories(volume, parent_of(target))]
    for suffix in ("", ".sig"):
        if volume.find(source + suffix) is None:
            continue
        content = read_file(volume, source + suffix)
        changes.append(put_file(volume, target + suffix, content))
    return tuple(changes)


def _refuse_flasher(volume: FatVolume) -> None:
    label = (volume.label or "").casefold()  # Windows writes labels in capitals
    if label not in _FLASHER_LABELS and volume.find(_FLASHER_FLAG) is None:
        return
    raise EditError(
        "this is a flasher image: its own grub.cfg starts flash-rootA, but the internal one looks "
        "for resin-rootA, which a flasher does not have; the stick would not boot any more",
        code="flasher-image",
        hint="Make the change in the image it carries: balenaflash unwrap IMAGE OUT",
    )


def _require_source(volume: FatVolume, source: str, target: str) -> None:
    if volume.find(source) is not None:
        return
    if volume.find(target) is not None:
        hint = (
            f"It may need none: images such as generic-amd64's have the internal settings in "
            f"{target} already; see balenaflash boot cat IMAGE {target}"
        )
    else:
        hint = "Boards that do not start with GRUB have none; see balenaflash boot ls -R IMAGE"
    raise EditError(
        f"{source}: this image has no such bootloader settings",
        code="internal-config-missing",
        hint=hint,
    )
