"""What a flasher carries, and what is known of the boards it runs on.

The list ships with the package. Each row names its source: a file of balena's board repository,
at a commit.

Both are in its root filesystem, plain ext4, and are read without mounting it.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources

from balenaflash.balena.image import BalenaImage
from balenaflash.balena.settings import SETTINGS_PATH, FlasherSettings, parse_flasher_settings
from balenaflash.balena.signature import SIGNATURE_SUFFIX
from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import EntryKind, Ext4Entry, Ext4File, Ext4Volume
from balenaflash.formats.partitions.model import Partition
from balenaflash.units import KIB


class HookPlace(StrEnum):
    """Place that a board's own flasher program writes, and that an image alone therefore lacks."""

    EMMC_BOOT = "emmc-boot"
    """A hardware boot partition of the eMMC, ``mmcblkNboot0``, which only the board reaches."""

    FLASH_CHIP = "flash-chip"
    """A NOR or NAND flash or an EEPROM on the board."""

    DISK = "disk"
    """The internal disk, outside of all partitions; the board selects the content."""

    FIRMWARE = "firmware"
    """The boot menu of an EFI firmware, and leftovers on the disk of the other boot method."""


@dataclass(frozen=True, slots=True)
class Board:
    """A device type."""

    slug: str

    hook: str | None
    """Action of its ``resin-init-flasher-board``, in a few words; ``None`` for nothing."""

    hook_place: HookPlace | None
    """``None`` if and only if there is no hook."""

    source: str
    """Source of these facts."""


def find_board(slug: str) -> Board | None:
    """The device type ``slug``; ``None`` if it is not in the list."""
    return _read_boards().get(slug)


@cache
def _read_boards() -> dict[str, Board]:
    path = resources.files("balenaflash").joinpath("share/boards.csv")
    boards = (
        Board(
            slug=row["slug"],
            hook=row["hook"] or None,
            hook_place=HookPlace(row["hook_place"]) if row["hook_place"] else None,
            source=row["source"],
        )
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    )
    return {board.slug: board for board in boards}


_IMAGE_FOLDER = "/opt"  # balena-image-flasher.bb
_SECURE_BOOT_PATH = "/usr/libexec/balena-init-flasher-secureboot"
_BOARD_HOOK_PATH = "/usr/bin/resin-init-flasher-board"
_EMPTY_HOOK_LINES = frozenset({"", "set -e", "exit 0"})
_MAX_SETTINGS_SIZE = 64 * KIB  # they have about 1 KiB
_MAX_SIGNATURE_SIZE = 64 * KIB  # of RSA with 4096 bits it has 512 bytes


@dataclass(frozen=True, slots=True)
class Flasher:
    """A flasher's root filesystem: the image it writes to the board, and how."""

    partition: Partition
    """The partition of that filesystem."""

    settings: FlasherSettings

    image_path: str
    """Path of the inner image in the root filesystem."""

    image: BalenaImage = field(repr=False)
    """The inner image; readable while the flasher's own source is open."""

    signature: bytes | None
    """The signature of the inner image; ``None`` if there is none."""

    has_secure_boot_hooks: bool
    """True if it can set up secure boot, as signed builds can."""

    has_board_hook: bool
    """True if it runs a program of the board's own at the end that does something."""

    warnings: tuple[str, ...] = ()

    @property
    def image_name(self) -> str:
        """File name of the inner image."""
        return self.image_path.rpartition("/")[2]


def read_flasher(image: BalenaImage) -> Flasher | None:
    """The flasher in ``image``; ``None`` if it has no flasher's root filesystem.

    The inner image is the one file of the name that the settings give, searched as the flasher
    does: in ``/opt``, where the image build puts it, and everywhere only if it is not there.

    Raises:
        ImageError: several partitions are named as a flasher's root filesystem; or that cannot be
            read, has no settings or settings that are not valid, or not exactly one such image.
    """
    partition = image.flasher_root
    if partition is None:
        return None
    name, volume = image.source.name, image.ext4_volume(partition)
    place = f"{name}: {SETTINGS_PATH} in partition {partition.number}"
    settings = parse_flasher_settings(_read_settings(volume, place), place)
    entry = _find_image(name, volume, settings.image)
    return Flasher(
        partition=partition,
        settings=settings,
        image_path=entry.path,
        image=BalenaImage(Ext4File(volume, entry, f"{name}: {entry.path}")),
        signature=_read_signature(volume, entry.path + SIGNATURE_SUFFIX),
        has_secure_boot_hooks=volume.find(_SECURE_BOOT_PATH) is not None,
        has_board_hook=_has_board_hook(volume),
        warnings=tuple(f"{each.message}." for each in volume.problems),
    )


def require_flasher(image: BalenaImage) -> Flasher:
    """The flasher in ``image``.

    Raises:
        ImageError: the image is not a flasher (``not-a-flasher``); or as `read_flasher`.
    """
    flasher = read_flasher(image)
    if flasher is None:
        raise ImageError(
            f"{image.source.name}: is not a flasher: it has no partition flash-rootA",
            code="not-a-flasher",
            hint="A raw image needs no unwrapping; it is written as it is.",
        )
    return flasher


def _read_settings(volume: Ext4Volume, place: str) -> bytes:
    entry = volume.find(SETTINGS_PATH)
    if entry is None:
        raise ImageError(
            f"{place}: is missing, so what this flasher installs is unknown",
            code="flasher-settings-missing",
        )
    return volume.read_file(entry, _MAX_SETTINGS_SIZE)


def _find_image(name: str, volume: Ext4Volume, pattern: str) -> Ext4Entry:
    folder = volume.find(_IMAGE_FOLDER)
    has_folder = folder is not None and folder.kind is EntryKind.DIRECTORY
    found = _matching(volume.list(_IMAGE_FOLDER), pattern) if has_folder else []
    found = found or _matching(volume.walk(), pattern)
    if not found:
        raise ImageError(
            f"{name}: its root filesystem has no file {pattern}, the image to install",
            code="flasher-image-missing",
        )
    if len(found) > 1:
        paths = " and ".join(sorted(each.path for each in found)[:2])
        raise ImageError(
            f"{name}: its root filesystem has several files {pattern}: {paths}",
            code="flasher-image-ambiguous",
        )
    if found[0].size == 0:
        raise ImageError(
            f"{name}: {found[0].path}: the image to install is empty", code="image-empty"
        )
    return found[0]


def _matching(entries: Iterable[Ext4Entry], pattern: str) -> list[Ext4Entry]:
    """The regular files among ``entries`` that ``find -type f -name PATTERN`` would print."""
    return [
        entry
        for entry in entries
        if entry.kind is EntryKind.FILE and fnmatchcase(entry.name, pattern)
    ]


def _read_signature(volume: Ext4Volume, path: str) -> bytes | None:
    entry = volume.find(path)
    if entry is None or entry.kind is not EntryKind.FILE:
        return None
    return volume.read_file(entry, _MAX_SIGNATURE_SIZE)


def _has_board_hook(volume: Ext4Volume) -> bool:
    """True if the program does more than the one of meta-balena itself, which does nothing."""
    entry = volume.find(_BOARD_HOOK_PATH)
    if entry is None or entry.kind is not EntryKind.FILE:
        return False
    if entry.size > _MAX_SETTINGS_SIZE:
        return True
    lines = volume.read_file(entry, _MAX_SETTINGS_SIZE).splitlines()
    code = (line.strip().decode("utf-8", "replace") for line in lines)
    return any(line not in _EMPTY_HOOK_LINES for line in code if not line.startswith("#"))
