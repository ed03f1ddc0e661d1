"""The partitions of an image with their filesystems and fill, and the content of a disk."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from balenaflash.balena.image import (
    CONFIG_PATH,
    EXT_TYPES,
    BalenaFacts,
    BalenaImage,
    BootPartition,
    OsVersion,
)
from balenaflash.edits.secrets import masked
from balenaflash.errors import CodedText, ImageError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem, recognise_foreign
from balenaflash.formats.partitions.table import (
    Partition,
    PartitionKind,
    PartitionTable,
    read_table,
    read_table_sectors,
)
from balenaflash.source.base import FileSource, Source
from balenaflash.source.container.decoder import Container
from balenaflash.source.stream import OutOfReachError, WithinReach
from balenaflash.targets.disks import Disk
from balenaflash.units import Extent


@dataclass(frozen=True, slots=True)
class DiskContent:
    """A partition, or the one filesystem that fills a disk. ``None`` is unknown."""

    name: str
    size: int
    """Size in bytes."""

    filesystem: str | None
    label: str | None
    """Label of the filesystem, else the name of the partition."""


def find_content(disk: Disk) -> tuple[DiskContent, ...]:
    """The content of the disk, as far as it is known; empty if nothing is.

    udev knows more kinds of filesystems. Without it, as in most containers, the disk is read,
    if this user may read it.
    """
    by_udev = tuple(
        DiskContent(each.node.name, each.size, each.filesystem, each.label)
        for each in disk.partitions
    )
    if not by_udev and (disk.filesystem or disk.label):
        by_udev = (DiskContent(disk.node.name, disk.size, disk.filesystem, disk.label),)
    if any(each.filesystem or each.label for each in by_udev):
        return by_udev
    return _read(disk) or by_udev


def _read(disk: Disk) -> tuple[DiskContent, ...]:
    try:
        descriptor = os.open(disk.node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()  # no permission, or gone; opening it for writing will report that
    try:
        source = FileSource(disk.node, descriptor, Container.BLOCK_DEVICE, disk.size)
        return tuple(_recognise(source, disk))
    except ImageError:
        return ()  # it cannot be read
    finally:
        os.close(descriptor)


def _recognise(source: Source, disk: Disk) -> Iterator[DiskContent]:
    whole = _find_filesystem(source, Extent(0, disk.size))
    try:
        partitions = read_table_sectors(source).table.partitions
    except ImageError:
        partitions = ()  # no table of a known kind
    # A stick with an installer has both: an ISO with a table laid over it.
    if whole is not None and (not partitions or whole.type == "iso9660"):
        yield DiskContent(disk.node.name, disk.size, whole.type, whole.label)
    for each in partitions:
        if each.kind is not PartitionKind.EXTENDED:
            found = _find_filesystem(source, each.extent)
            filesystem, label = (None, None) if found is None else (found.type, found.label)
            name = f"partition {each.number}"
            yield DiskContent(name, each.extent.size, filesystem, label or each.name)


def _find_filesystem(source: Source, extent: Extent) -> Filesystem | None:
    return recognise_filesystem(source, extent) or recognise_foreign(source, extent)


@dataclass(frozen=True, slots=True)
class Fill:
    """The room in a filesystem, and how much of it is free, by its own count."""

    total_bytes: int
    """All clusters of FAT, without its tables; all blocks of ext4, its metadata included."""

    free_bytes: int

    @property
    def used_bytes(self) -> int:
        """Bytes that are not free."""
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """A partition and its content."""

    partition: Partition
    filesystem: Filesystem | None = None
    """``None`` if no filesystem is recognised, or if it was not searched."""

    fill: Fill | None = None
    """``None`` if it is unknown."""

    was_read: bool = True
    """False if no filesystem was searched: a stream is read no further than needed."""


@dataclass(frozen=True, slots=True)
class DiskReport:
    """A disk of balenaOS layout."""

    size: int | None
    """Bytes from start to end, by the container or else by the GPT; ``None`` if unknown."""

    size_by_table: bool
    """True if the size is that in the GPT."""

    table: PartitionTable
    partitions: tuple[PartitionReport, ...]
    boot: BootPartition
    fat_bits: int
    """12, 16 or 32, of the boot partition."""

    boot_fill: Fill
    facts: BalenaFacts
    os_version: OsVersion | None
    config: Mapping[str, object] | None
    """config.json with its secrets masked, unless they were requested."""

    warnings: tuple[str, ...]
    files: FatVolume = field(repr=False)
    """The files of the boot partition; readable while the disk is open."""


def report_disk(image: BalenaImage, *, show_secrets: bool) -> DiskReport:
    """The report on the disk ``image``, read as far as possible in ascending order.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
    """
    table, boot, files, facts = image.table, image.boot, image.files, image.facts
    config = facts.config
    if config is not None and not show_secrets:
        config = masked(config)
    elsewhere = _warn_of_config_elsewhere(image)
    version, about_version = image.os_version
    partitions, about_partitions = _report_partitions(image, version)
    size = image.source.size
    return DiskReport(
        size=table.disk_size if size is None else size,
        size_by_table=size is None and table.disk_size is not None,
        table=table,
        partitions=partitions,
        boot=boot,
        fat_bits=files.fat_bits,
        boot_fill=Fill(files.total_bytes, files.free_bytes),
        facts=replace(facts, os_version=version.text if version else None),
        os_version=version,
        config=config,
        warnings=(
            *table.warnings,
            *boot.warnings,
            *facts.warnings,
            *elsewhere,
            *([_CLONE_WARNING] if facts.is_clone else ()),
            *about_version,
            *about_partitions,
        ),
        files=files,
    )


_CLONE_WARNING = (
    "The disk of this image has booted: all boards written from it would be the same one."
)


def _warn_of_config_elsewhere(image: BalenaImage) -> tuple[str, ...]:
    if not image.source.seekable or image.files.find(CONFIG_PATH) is not None:
        return ()
    partition = image.find_config_elsewhere()
    if partition is None:
        return ()
    text = f"config.json is in partition {partition.number}, as resinOS 1.x has it."
    return (CodedText(text, code="config-elsewhere"),)


def _report_partitions(
    image: BalenaImage, version: OsVersion | None
) -> tuple[tuple[PartitionReport, ...], tuple[str, ...]]:
    """Every partition, and warnings about their filesystems.

    A stream is not decoded any further for it than it was before: up to the partition that
    follows the boot partition, or the one with the version.
    """
    table, boot_number = image.table, image.boot.partition.number
    reach = max(
        each.extent.end if each.number == boot_number else each.extent.start
        for each in table.partitions
        if each.number == boot_number or (version and each.number == version.partition)
    )
    reports: dict[int, PartitionReport] = {}
    warnings: list[str] = []
    for partition in sorted(table.partitions, key=lambda each: each.extent.start):
        was_read = image.source.seekable or partition.extent.start <= reach
        report = PartitionReport(partition, was_read=was_read)
        if was_read and partition.kind is not PartitionKind.EXTENDED:
            filesystem = image.filesystem(partition)
            fill = None
            if filesystem is not None:
                fill, about_fill = _read_fill(image, partition, filesystem)
                warnings += about_fill
            report = PartitionReport(partition, filesystem, fill)
        reports[partition.number] = report
    return tuple(reports[each.number] for each in table.partitions), tuple(warnings)


def _read_fill(
    image: BalenaImage, partition: Partition, filesystem: Filesystem
) -> tuple[Fill | None, tuple[str, ...]]:
    """How full a filesystem is, and warnings about it.

    Little is read: the table of FAT, the superblock of ext4. The result is ``None`` if the
    filesystem is damaged, or of a type that is not known.
    """
    try:
        if filesystem.type == "vfat":
            volume = image.fat_volume(partition)
            return _checked(volume.total_bytes, volume.free_bytes), ()
        if filesystem.type in EXT_TYPES:
            ext4 = image.ext4_volume(partition)
            warnings = tuple(problem.message for problem in ext4.problems)
            return _checked(ext4.total_bytes, ext4.free_bytes), warnings
    except ImageError as error:
        return None, (str(error),)
    return None, ()


def _checked(total: int, free: int) -> Fill | None:
    """A superblock may claim anything."""
    return Fill(total, free) if 0 <= free <= total and total else None


def follow_logical(image: BalenaImage, report: DiskReport, *, limit: int) -> DiskReport:
    """``report`` on ``image`` with the logical partitions that lie too far into a stream.

    For them at most ``limit`` more bytes of it are decoded; if that is not enough, a warning
    says that they were not read. Their filesystems are not searched.

    Raises:
        ImageError: the table is not valid, or the stream is damaged or cut short.
    """
    if report.table.is_complete:
        return report
    try:
        table = read_table(WithinReach(image.source, limit))
    except OutOfReachError:
        numbers = ", ".join(
            str(each.number)
            for each in report.table.partitions
            if each.kind is PartitionKind.EXTENDED
        )
        warning = (
            f"The logical partitions in partition {numbers} were not read: they are too far "
            "into the stream."
        )
        return replace(report, warnings=(*report.warnings, warning))
    known = {each.partition.number: each for each in report.partitions}
    return replace(
        report,
        table=table,
        partitions=tuple(
            replace(known[each.number], partition=each)
            if each.number in known
            else PartitionReport(each, was_read=False)
            for each in table.partitions
        ),
        warnings=tuple(dict.fromkeys((*report.warnings, *table.warnings))),
    )
