"""A balenaOS image in its own terms: boot partition, root filesystem, and the facts in them.

The names come from meta-balena v8.0.2 (``image_types_balena.bbclass``, ``image-balena.bbclass``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

from balenaflash.balena.json_text import format_value, parse_document
from balenaflash.balena.settings import parse_settings, read_assignments
from balenaflash.errors import ConfigError, EditError, ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem
from balenaflash.formats.partitions.model import Partition, PartitionKind
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.source.base import Source
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.undo_record import warn_of_half_edited
from balenaflash.units import KIB, MIB, format_size

BOOT_LABELS = ("resin-boot", "flash-boot", "balena-boot", "resin-conf", "flash-conf")
"""Names of the boot partition, in the order of balena-config-json; the last two are resinOS 1.x."""

_FLASHER_BOOT_LABELS = frozenset({"flash-boot", "flash-conf"})

FLASHER_ROOT_LABELS = frozenset({"flash-rootA", "flash-root"})
_ROOT_LABELS = frozenset({"resin-rootA", "resin-root"}) | FLASHER_ROOT_LABELS
"""Names of the root filesystem; those without the A until resinOS 1.x."""

_CONFIG_LABELS = ("resin-conf", "flash-conf", "config")
"""Names of the partition that holds config.json alone, in resinOS 1.x."""

CONFIG_PATH = "/config.json"
DEVICE_TYPE_PATH = "/device-type.json"
FINGERPRINT_PATHS = ("/balenaos.fingerprint", "/resinos.fingerprint")
_IMAGE_NAME_PATH = "/image-version-info"
_BOOT_OS_RELEASE_PATH = "/os-release"
_ROOT_OS_RELEASE_PATH = "/etc/os-release"

EXT_TYPES = frozenset({"ext2", "ext3", "ext4"})
_CLONE_MARKS = ("BDEF-", "ba1eadef-")  # start of a FAT volume ID, and of an ext4 UUID
_MAX_OS_RELEASE_SIZE = 64 * KIB  # the file has about 1 KiB
_MAX_FILE_SIZE = MIB  # of a file that is parsed; config.json has a few KiB


class ImageKind(StrEnum):
    """The action of an image when a board starts from it."""

    RAW = "raw"
    """It runs."""

    FLASHER = "flasher"
    """It writes the raw image it carries to the board's internal storage."""


_FLAG_FILES = {"/balena-image-flasher": ImageKind.FLASHER, "/balena-image": ImageKind.RAW}
"""Empty but for "DO NOT REMOVE THIS FILE"."""


@dataclass(frozen=True, slots=True)
class BootPartition:
    """The boot partition, and why it is the one."""

    partition: Partition
    reason: str
    """A sentence."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OsVersion:
    """The version of balenaOS, and the file that contains it."""

    text: str
    partition: int
    """Number of the partition."""

    path: str
    """Path of the file in that partition."""


@dataclass(frozen=True, slots=True)
class BalenaFacts:
    """Facts in the files of the boot partition; ``None`` is unknown."""

    kind: ImageKind | None
    slug: str | None
    """Device type, such as ``raspberrypi4-64``."""

    name: str | None
    arch: str | None
    machine: str | None
    """Yocto machine; often, but not always, the slug."""

    os_version: str | None
    """Flashers have it in their root filesystem only."""

    image_name: str | None
    config: Mapping[str, object] | None
    """Content of config.json with its secrets; ``None`` also if it is not valid."""

    fingerprint_present: bool
    is_clone: bool
    """True if the disk this image was taken from has booted: its copies share uuid and keys."""

    warnings: tuple[str, ...] = ()


class BalenaImage:
    """An open image: each fact is found when it is first needed, and then kept.

    Nothing is read before. ``source`` must stay open, and must not change. What is read of a
    stream should be asked for in ascending order: table, boot partition, root filesystem.
    """

    def __init__(self, source: Source, opening_warnings: Sequence[str] = ()) -> None:
        self.source = source
        self.opening_warnings = tuple(opening_warnings)
        self._filesystems: dict[int, Filesystem | None] = {}
        self._fat_volumes: dict[int, FatVolume] = {}
        self._ext4_volumes: dict[int, Ext4Volume] = {}

    @cached_property
    def table(self) -> PartitionTable:
        """The partition table; errors as `read_table`."""
        return read_table(self.source)

    @cached_property
    def boot(self) -> BootPartition:
        """The partition that holds config.json, found by name and content.

        Its number differs from board to board, and boards have other FAT partitions before it, so
        the order is: a name or label in ``BOOT_LABELS``; the FAT partition that holds
        ``/device-type.json``; partition 1, with a warning, as balena-config-json does.

        Raises:
            ImageError: no FAT partition can be the one (``boot-partition-missing``).
        """
        fats = self._find_fats()
        return self._find_called(fats) or self._find_by_content(fats)

    @cached_property
    def files(self) -> FatVolume:
        """The files of the boot partition, to be read; errors as `FatVolume.open`."""
        return self.fat_volume(self.boot.partition)

    def open_files(self) -> FatVolume:
        """The files of the boot partition once more, to be edited in memory."""
        return self._open_fat_volume(self.boot.partition)

    @cached_property
    def facts(self) -> BalenaFacts:
        """The facts in the files of the boot partition.

        A missing file leaves its facts unknown; one that is not valid adds a warning.
        """
        filesystem = self.filesystem(self.boot.partition)
        return _read_facts(self.files, is_clone=filesystem is not None and is_cloned(filesystem))

    @cached_property
    def root(self) -> Partition | None:
        """The first partition of a root filesystem, by its name in the GPT, else by its label.

        Partitions after it are not read.
        """
        names = ((each, each.name or self._label(each)) for each in self._filesystem_partitions)
        return next((each for each, name in names if name in _ROOT_LABELS), None)

    @cached_property
    def flasher_root(self) -> Partition | None:
        """The partition of the root filesystem if it is that of a flasher.

        Raises:
            ImageError: several partitions are named so (``flasher-ambiguous``).
        """
        named = [each for each in self.table.partitions if each.name in FLASHER_ROOT_LABELS]
        if len(named) > 1:
            numbers = " and ".join(str(each.number) for each in named)
            raise ImageError(
                f"{self.source.name}: partitions {numbers} are both named as a flasher's root "
                "filesystem",
                code="flasher-ambiguous",
            )
        root = self.root
        if root is None or (root.name or self._label(root)) not in FLASHER_ROOT_LABELS:
            return None
        return root

    @cached_property
    def os_version(self) -> tuple[OsVersion | None, tuple[str, ...]]:
        """The version in the boot partition, else in the root filesystem; and warnings.

        The latter is in ``/etc/os-release`` (os-release(5)), which may be a link.
        """
        if self.facts.os_version is not None:
            number = self.boot.partition.number
            return OsVersion(self.facts.os_version, number, _BOOT_OS_RELEASE_PATH), ()
        if self.root is None:
            return None, ()
        try:
            volume = self.ext4_volume(self.root)
            entry = volume.find(_ROOT_OS_RELEASE_PATH)
            if entry is None:
                return None, ()
            place = f"{self.source.name}: {_ROOT_OS_RELEASE_PATH} in partition {self.root.number}"
            data = volume.read_file(entry, _MAX_OS_RELEASE_SIZE)
            version = parse_settings(data, place).get("VERSION")
        except ImageError as error:
            return None, (f"The version of the OS is not known: {error}",)
        if not version:
            return None, ()
        return OsVersion(version, self.root.number, _ROOT_OS_RELEASE_PATH), ()

    @property
    def layout_warnings(self) -> tuple[str, ...]:
        """Warnings about opening the image, its table, and the choice of its boot partition."""
        return (*self.opening_warnings, *self.table.warnings, *self.boot.warnings)

    @property
    def mark_warnings(self) -> tuple[str, ...]:
        """A warning if the boot partition is marked as half-edited."""
        return warn_of_half_edited(self.files.edit_mark.before)

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings above, and those about the structure of the boot partition."""
        return (*self.layout_warnings, *self.mark_warnings, *self.files.problems())

    def filesystem(self, partition: Partition) -> Filesystem | None:
        """The filesystem in ``partition``; ``None`` if it is not known."""
        if partition.number not in self._filesystems:
            self._filesystems[partition.number] = recognise_filesystem(
                self.source, partition.extent
            )
        return self._filesystems[partition.number]

    def fat_volume(self, partition: Partition) -> FatVolume:
        """The FAT volume in ``partition``, to be read; errors as `FatVolume.open`."""
        if partition.number not in self._fat_volumes:
            self._fat_volumes[partition.number] = self._open_fat_volume(partition)
        return self._fat_volumes[partition.number]

    def ext4_volume(self, partition: Partition) -> Ext4Volume:
        """The ext2, ext3 or ext4 filesystem in ``partition``; errors as `Ext4Volume.open`."""
        if partition.number not in self._ext4_volumes:
            self._ext4_volumes[partition.number] = Ext4Volume.open(self.source, partition.extent)
        return self._ext4_volumes[partition.number]

    def with_boot_changes(self, patches: Sequence[Patch]) -> "BalenaImage":
        """This image with ``patches`` in its boot partition: the table and its place stay."""
        image = BalenaImage(Overlay(self.source, patches), self.opening_warnings)
        image.table, image.boot = self.table, self.boot
        return image

    def find_config_elsewhere(self) -> Partition | None:
        """The partition in which resinOS 1.x keeps config.json, apart from its boot partition.

        ``None`` if no partition has it, or if the boot partition is that one.

        Raises:
            ImageError: the image cannot be read.
        """
        for partition in sorted(self._filesystem_partitions, key=lambda each: each.extent):
            is_called = not self._names(partition).isdisjoint(_CONFIG_LABELS)
            if partition != self.boot.partition and is_called and self._holds_config(partition):
                return partition
        return None

    def _holds_config(self, partition: Partition) -> bool:
        filesystem = self.filesystem(partition)
        try:
            if filesystem is not None and filesystem.type == "vfat":
                return self.fat_volume(partition).find(CONFIG_PATH) is not None
            if filesystem is not None and filesystem.type in EXT_TYPES:
                return self.ext4_volume(partition).find(CONFIG_PATH) is not None
        except ImageError:
            return False  # too damaged to be searched
        return False

    def _find_fats(self) -> list[Partition]:
        """The FAT partitions; in a stream only up to the first with a known name.

        To see the others, all of the stream would have to be decoded.
        """
        found: list[Partition] = []
        for partition in sorted(self._filesystem_partitions, key=lambda each: each.extent):
            filesystem = self.filesystem(partition)
            if filesystem is not None and filesystem.type == "vfat":
                found.append(partition)
                is_called = not self._names(partition).isdisjoint(BOOT_LABELS)
                if is_called and not self.source.seekable:
                    break
        return sorted(found, key=lambda each: each.number)

    def _find_called(self, fats: list[Partition]) -> BootPartition | None:
        for label in BOOT_LABELS:
            called = [each for each in fats if label in self._names(each)]
            if called:
                first, *others = called
                numbers = ", ".join(str(each.number) for each in others)
                warning = f"Partition {numbers} is called {label} too; the first one is used."
                by_name = first.name == label
                what = "Its name in the GPT" if by_name else "The label of its filesystem"
                return BootPartition(first, f"{what} is {label}.", (warning,) if others else ())
        return None

    def _find_by_content(self, fats: list[Partition]) -> BootPartition:
        for partition in fats:
            try:
                if self.fat_volume(partition).find(DEVICE_TYPE_PATH) is not None:
                    reason = f"It holds {DEVICE_TYPE_PATH}, and no partition has a known name."
                    return BootPartition(partition, reason)
            except ImageError:
                continue  # a FAT too damaged to be searched cannot be chosen by its files
        for partition in fats:
            if partition.number == 1:
                reason = "It is partition 1, and no partition has a known name or file."
                guess = "The boot partition is a guess: nothing in it says that it is balenaOS's."
                return BootPartition(partition, reason, (guess,))
        numbers = ", ".join(str(each.number) for each in fats)
        fact = f"its FAT (partition {numbers}) has neither a known name nor {DEVICE_TYPE_PATH}"
        if not fats:
            fact = f"none of its {len(self.table.partitions)} partitions is a FAT"
        raise ImageError(
            f"{self.source.name}: has no balenaOS boot partition: {fact}",
            code="boot-partition-missing",
            hint="Is this an image of balenaOS? Its boot partition is a FAT named resin-boot.",
        )

    def _names(self, partition: Partition) -> set[str]:
        """The name in the GPT, and the label; Windows writes labels in capitals."""
        return {partition.name or "", (self._label(partition) or "").casefold()}

    def _open_fat_volume(self, partition: Partition) -> FatVolume:
        volume = FatVolume.open(self.source, partition.extent)
        volume.partition_name = partition.name
        return volume

    @property
    def _filesystem_partitions(self) -> list[Partition]:
        """The partitions that may hold a filesystem, in the order of their numbers."""
        return [each for each in self.table.partitions if each.kind is not PartitionKind.EXTENDED]

    def _label(self, partition: Partition) -> str | None:
        filesystem = self.filesystem(partition)
        return filesystem.label if filesystem else None


def is_cloned(filesystem: Filesystem) -> bool:
    """True if balenaOS has marked this filesystem at a boot, by the UUID it sets then."""
    return (filesystem.uuid or "").startswith(_CLONE_MARKS)


def find_kind(files: FatVolume, warnings: list[str]) -> ImageKind | None:
    """The kind of the image with these boot files; a sentence about an oddity goes to ``warnings``.

    A flag file says it. Images older than those have a partition name or label that does.
    """
    names = {files.partition_name, (files.label or "").casefold()}
    by_label = None if _FLASHER_BOOT_LABELS.isdisjoint(names) else ImageKind.FLASHER
    flags = [kind for path, kind in _FLAG_FILES.items() if files.find(path) is not None]
    if len(flags) > 1:
        warnings.append("The boot partition is flagged both as raw image and as flasher.")
        return by_label
    if flags and by_label and flags[0] is not by_label:
        warnings.append(f"The boot partition is named as a flasher's, and flagged as {flags[0]}.")
    return flags[0] if flags else by_label


def _read_facts(files: FatVolume, *, is_clone: bool) -> BalenaFacts:
    documents = _Documents(files)
    device_type = documents.json_object(DEVICE_TYPE_PATH) or {}
    yocto = device_type.get("yocto")
    machine = yocto.get("machine") if isinstance(yocto, dict) else None
    os_release = documents.parsed(_BOOT_OS_RELEASE_PATH, read_assignments) or {}
    image_name = (documents.parsed(_IMAGE_NAME_PATH, bytes.decode) or "").strip()
    config = documents.json_object(CONFIG_PATH)
    if config is None and not files.find(CONFIG_PATH):
        documents.warnings.append(f"{CONFIG_PATH} is missing from the boot partition.")
    return BalenaFacts(
        kind=find_kind(files, documents.warnings),
        slug=_text_or_none(device_type.get("slug")) or os_release.get("SLUG"),
        name=_text_or_none(device_type.get("name")),
        arch=_text_or_none(device_type.get("arch")),
        machine=_text_or_none(machine) or os_release.get("MACHINE"),
        os_version=os_release.get("VERSION"),
        image_name=image_name or None,
        config=config,
        fingerprint_present=any(files.find(path) is not None for path in FINGERPRINT_PATHS),
        is_clone=is_clone,
        warnings=tuple(documents.warnings),
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


_T = TypeVar("_T")


class _Documents:
    """Small files of the boot partition, with a warning for each that cannot be used."""

    def __init__(self, volume: FatVolume) -> None:
        self._volume = volume
        self.warnings: list[str] = []

    def json_object(self, path: str) -> Mapping[str, object] | None:
        return self.parsed(path, lambda data: _parse_object(data, path))

    def parsed(self, path: str, parse: Callable[[bytes], _T]) -> _T | None:
        """The content of a file; ``None`` if it is missing or cannot be used."""
        entry = self._volume.find(path)
        if entry is None:
            return None
        if entry.size > _MAX_FILE_SIZE:
            self.warnings.append(f"{path} is not read: it has {format_size(entry.size)}.")
            return None
        try:
            return parse(self._volume.read_file(path))
        except (ImageError, EditError) as error:
            self.warnings.append(f"{path} cannot be read: {error}")
        except ConfigError as error:
            self.warnings.append(str(error))
        except UnicodeDecodeError as error:
            self.warnings.append(f"{path} is not UTF-8 text, at byte {error.start}.")
        except ValueError as error:
            self.warnings.append(f"{path} is not valid: {error}")
        return None


def _parse_object(data: bytes, path: str) -> Mapping[str, object]:
    """The JSON object in ``data``, which can be printed and written again.

    Raises:
        ConfigError: it is not one, or its readers disagree on it.
        UnicodeEncodeError: it has half a character, ``"\\ud800"``, which JSON's grammar allows.
    """
    content = parse_document(data, path).content
    format_value(content).encode("utf-8")
    return content
