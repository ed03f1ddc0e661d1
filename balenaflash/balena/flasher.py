"""What a flasher carries: the image it writes, and how it is told to.

Both lie in its root filesystem, plain ext4, and are read without mounting it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from balenaflash.balena.settings import (
    SETTINGS_PATH,
    FlasherSettings,
    parse_flasher_settings,
    parse_settings,
)
from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import EntryKind, Ext4Entry, Ext4File, Ext4Volume
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.source.base import Source
from balenaflash.units import KIB

SIGNATURE_SUFFIX = ".sig"

_ROOT_LABELS = frozenset({"flash-rootA", "flash-root"})  # the latter until resinOS 1.x
_RAW_PREFIX = "resin-"  # of every label of a raw image
_IMAGE_FOLDER = "/opt"  # balena-image-flasher.bb
_OS_RELEASE_PATH = "/etc/os-release"
_SECURE_BOOT_PATH = "/usr/libexec/balena-init-flasher-secureboot"
_BOARD_HOOK_PATH = "/usr/bin/resin-init-flasher-board"
_EMPTY_HOOK_LINES = frozenset({"", "set -e", "exit 0"})
_MAX_SETTINGS_SIZE = 64 * KIB  # they have about 1 KiB
_MAX_SIGNATURE_SIZE = 64 * KIB  # of RSA with 4096 bits it has 512 bytes


@dataclass(frozen=True, slots=True)
class Flasher:
    """A flasher's root filesystem, as far as it tells what is installed and how."""

    partition: Partition
    """The one that holds it."""

    settings: FlasherSettings

    image_path: str
    """Path of the inner image in the root filesystem."""

    image: Source = field(repr=False)
    """The inner image; readable as long as the flasher's own source is."""

    signature: bytes | None
    """What signs the inner image; ``None`` where nothing does."""

    os_version: str | None
    """Of the system that the flasher runs, which is that of the image it carries."""

    has_secure_boot_hooks: bool
    """Whether it can set up secure boot, as signed builds can."""

    has_board_hook: bool
    """Whether it runs a program of the board's own at the end, beside the empty one."""

    warnings: tuple[str, ...] = ()

    @property
    def image_name(self) -> str:
        """The inner image's file name."""
        return self.image_path.rpartition("/")[2]


def read_flasher(source: Source, table: PartitionTable) -> Flasher | None:
    """What the flasher in ``source`` carries; ``None`` if it has no flasher's root filesystem.

    The inner image is the one file of the name that the settings give, as the flasher itself
    searches it: in ``/opt``, where the image build puts it, and only if there is none everywhere.

    Raises:
        ImageError: the filesystem cannot be read, has no settings or settings that are not valid,
            or not exactly one such image.
    """
    partition = _find_root(source, table)
    if partition is None:
        return None
    volume = Ext4Volume.open(source, partition.extent)
    place = f"{source.name}: {SETTINGS_PATH} in partition {partition.number}"
    settings = parse_flasher_settings(_read_settings(volume, place), place)
    entry = _find_image(source, volume, settings.image)
    warnings: list[str] = [f"{each.message}." for each in volume.problems]
    return Flasher(
        partition=partition,
        settings=settings,
        image_path=entry.path,
        image=Ext4File(volume, entry, f"{source.name}: {entry.path}"),
        signature=_read_signature(volume, entry.path + SIGNATURE_SUFFIX),
        os_version=_read_os_version(volume, warnings),
        has_secure_boot_hooks=volume.find(_SECURE_BOOT_PATH) is not None,
        has_board_hook=_has_board_hook(volume),
        warnings=tuple(warnings),
    )


def _find_root(source: Source, table: PartitionTable) -> Partition | None:
    """By the name in the GPT, else by the label of the filesystem.

    Of a compressed image nothing is read behind the partition that is found.
    """
    named = [each for each in table.partitions if each.name in _ROOT_LABELS]
    if len(named) > 1:
        numbers = " and ".join(str(each.number) for each in named)
        raise ImageError(
            f"{source.name}: partitions {numbers} are both named as a flasher's root filesystem",
            code="flasher-ambiguous",
        )
    if named:
        return named[0]
    for partition in table.partitions:
        if partition.kind is PartitionKind.EXTENDED:
            continue
        label = partition.name or _label(source, partition)
        if label in _ROOT_LABELS:
            return partition
        if label.startswith(_RAW_PREFIX):
            return None
    return None


def _label(source: Source, partition: Partition) -> str:
    filesystem = recognise_filesystem(source, partition.extent)
    return (filesystem.label if filesystem else None) or ""


def _read_settings(volume: Ext4Volume, place: str) -> bytes:
    entry = volume.find(SETTINGS_PATH)
    if entry is None:
        raise ImageError(
            f"{place}: is missing, so what this flasher installs is not known",
            code="flasher-settings-missing",
        )
    return volume.read_file(entry, _MAX_SETTINGS_SIZE)


def _find_image(source: Source, volume: Ext4Volume, pattern: str) -> Ext4Entry:
    folder = volume.find(_IMAGE_FOLDER)
    has_folder = folder is not None and folder.kind is EntryKind.DIRECTORY
    found = _matching(volume.list(_IMAGE_FOLDER), pattern) if has_folder else []
    found = found or _matching(volume.walk(), pattern)
    if not found:
        raise ImageError(
            f"{source.name}: its root filesystem has no file {pattern}, the image to install",
            code="flasher-image-missing",
        )
    if len(found) > 1:
        paths = " and ".join(sorted(each.path for each in found)[:2])
        raise ImageError(
            f"{source.name}: its root filesystem has several files {pattern}: {paths}",
            code="flasher-image-ambiguous",
        )
    if found[0].size == 0:
        raise ImageError(
            f"{source.name}: {found[0].path}: the image to install is empty", code="image-empty"
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


def _read_os_version(volume: Ext4Volume, warnings: list[str]) -> str | None:
    """``VERSION`` of os-release(5), whose lines are assignments for a shell."""
    try:
        entry = volume.find(_OS_RELEASE_PATH)
        if entry is None:
            return None
        data = volume.read_file(entry, _MAX_SETTINGS_SIZE)
        return parse_settings(data, _OS_RELEASE_PATH).get("VERSION") or None
    except ImageError as error:
        warnings.append(f"The version of the flasher is not known: {error}")
        return None


def _has_board_hook(volume: Ext4Volume) -> bool:
    """Whether the program does more than the one that meta-balena itself supplies: nothing."""
    entry = volume.find(_BOARD_HOOK_PATH)
    if entry is None or entry.kind is not EntryKind.FILE:
        return False
    if entry.size > _MAX_SETTINGS_SIZE:
        return True
    lines = volume.read_file(entry, _MAX_SETTINGS_SIZE).splitlines()
    code = (line.strip().decode("utf-8", "replace") for line in lines)
    return any(line not in _EMPTY_HOOK_LINES for line in code if not line.startswith("#"))
