"""The image that a flasher carries, and the settings by which it writes it.

Both are in its root filesystem, plain ext4, and are read without mounting it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from balenaflash.balena.image import BalenaImage
from balenaflash.balena.settings import SETTINGS_PATH, FlasherSettings, parse_flasher_settings
from balenaflash.balena.signature import SIGNATURE_SUFFIX
from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import EntryKind, Ext4Entry, Ext4File, Ext4Volume
from balenaflash.formats.partitions.model import Partition
from balenaflash.units import KIB

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
