"""The partitions of a disk or an image: filesystems, how full they are, and balenaOS's facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from balenaflash.balena.image import (
    CONFIG_PATH,
    OS_RELEASE_PATH,
    BalenaFacts,
    BootPartition,
    find_boot_partition,
    find_config_elsewhere,
    find_root,
    read_facts,
    read_os_release,
)
from balenaflash.edits.secrets import masked
from balenaflash.errors import CodedText, ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem
from balenaflash.formats.partitions.table import (
    Partition,
    PartitionKind,
    PartitionTable,
    read_table,
)
from balenaflash.source.base import Source
from balenaflash.source.stream import OutOfReachError, WithinReach
from balenaflash.units import Extent

_EXT_TYPES = frozenset({"ext2", "ext3", "ext4"})


@dataclass(frozen=True, slots=True)
class Fill:
    """What a filesystem has room for, and how much of that is free."""

    total_bytes: int
    """All clusters of FAT, without its tables; all blocks of ext4, its metadata included."""

    free_bytes: int

    @property
    def used_bytes(self) -> int:
        """What is not free."""
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True)
class FillReading:
    """How full a filesystem is, and what is doubtful of it."""

    fill: Fill | None
    """``None`` of a filesystem that is damaged, or of a type that is not understood."""

    warnings: tuple[str, ...] = ()


def read_fill(source: Source, extent: Extent, filesystem: Filesystem) -> FillReading:
    """How full the ``filesystem`` in ``extent`` is by its own count.

    Little is read: the table of FAT, the superblock of ext4.
    """
    try:
        if filesystem.type == "vfat":
            volume = FatVolume.open(source, extent)
            return FillReading(_checked(volume.total_bytes, volume.free_bytes))
        if filesystem.type in _EXT_TYPES:
            ext4 = Ext4Volume.open(source, extent)
            warnings = tuple(problem.message for problem in ext4.problems)
            return FillReading(_checked(ext4.total_bytes, ext4.free_bytes), warnings)
    except ImageError as error:
        return FillReading(None, (str(error),))
    return FillReading(None)


def _checked(total: int, free: int) -> Fill | None:
    """A superblock may claim anything."""
    return Fill(total, free) if 0 <= free <= total and total else None


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """A partition and what is on it."""

    partition: Partition
    filesystem: Filesystem | None
    """``None`` where no filesystem is recognised, or where none was looked for."""

    fill: Fill | None = None
    """``None`` where it is unknown."""

    was_read: bool = True
    """Whether a filesystem was looked for: in a stream only as far as it had to be read."""


@dataclass(frozen=True, slots=True)
class BootReport:
    """The boot partition: which, why, how full."""

    partition: BootPartition
    fat_bits: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class OsVersion:
    """The version of balenaOS, and where it is told."""

    text: str
    partition: int
    """Number of the partition."""

    path: str
    """Of the file in it."""


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """A disk of balenaOS layout."""

    size: int | None
    """Bytes from start to end, by the container's word or else by the GPT's; ``None`` where
    neither tells."""

    size_by_table: bool
    """Whether it is the GPT that tells the size."""

    table: PartitionTable
    partitions: tuple[PartitionReport, ...]
    boot: BootReport
    facts: BalenaFacts
    os_version: OsVersion | None
    config: Mapping[str, object] | None
    """config.json with its secrets masked, unless they were asked for."""

    warnings: tuple[str, ...]
    files: FatVolume = field(repr=False)
    """Of the boot partition, to look at."""


def report_layout(source: Source, *, show_secrets: bool) -> LayoutReport:
    """What is on the disk ``source``, read as far as possible in ascending order.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
    """
    table = read_table(source)
    boot = find_boot_partition(source, table)
    volume = boot.open(source)
    facts = read_facts(volume, boot)
    config = facts.config
    if config is not None and not show_secrets:
        config = masked(config)
    version, about_version = _find_os_version(source, table, boot, facts)
    partitions, about_partitions = _report_partitions(source, table, boot, version)
    return LayoutReport(
        size=table.disk_size if source.size is None else source.size,
        size_by_table=source.size is None and table.disk_size is not None,
        table=table,
        partitions=partitions,
        boot=BootReport(boot, volume.fat_bits, volume.total_bytes, volume.free_bytes),
        facts=replace(facts, os_version=version.text if version else None),
        os_version=version,
        config=config,
        warnings=(
            *table.warnings,
            *boot.warnings,
            *facts.warnings,
            *_warn_of_config_elsewhere(source, table, boot, volume),
            *_warn_of_clone(facts),
            *about_version,
            *about_partitions,
        ),
        files=volume,
    )


def _warn_of_config_elsewhere(
    source: Source, table: PartitionTable, boot: BootPartition, volume: FatVolume
) -> tuple[str, ...]:
    if not source.seekable or volume.find(CONFIG_PATH) is not None:
        return ()
    partition = find_config_elsewhere(source, table, boot)
    if partition is None:
        return ()
    text = f"config.json is in partition {partition.number}, as resinOS 1.x has it."
    return (CodedText(text, code="config-elsewhere"),)


def follow_logical(source: Source, layout: LayoutReport, *, limit: int) -> LayoutReport:
    """``layout`` of ``source`` with the logical partitions that lie too far into a stream.

    For them at most ``limit`` more bytes of it are decoded; where that is not enough, a warning
    says that they were not read. What is on them is not looked for.

    Raises:
        ImageError: the table is not valid, or the stream is damaged or cut short.
    """
    if layout.table.is_complete:
        return layout
    try:
        table = read_table(WithinReach(source, limit))
    except OutOfReachError:
        numbers = ", ".join(
            str(each.number)
            for each in layout.table.partitions
            if each.kind is PartitionKind.EXTENDED
        )
        warning = (
            f"The logical partitions in partition {numbers} were not read: they are too far "
            "into the stream."
        )
        return replace(layout, warnings=(*layout.warnings, warning))
    known = {each.partition.number: each for each in layout.partitions}
    return replace(
        layout,
        table=table,
        partitions=tuple(
            replace(known[each.number], partition=each)
            if each.number in known
            else PartitionReport(each, None, was_read=False)
            for each in table.partitions
        ),
        warnings=tuple(dict.fromkeys((*layout.warnings, *table.warnings))),
    )


def _find_os_version(
    source: Source, table: PartitionTable, boot: BootPartition, facts: BalenaFacts
) -> tuple[OsVersion | None, tuple[str, ...]]:
    """As the boot partition tells it, else the root filesystem; and what to warn of."""
    if facts.os_version is not None:
        return OsVersion(facts.os_version, boot.partition.number, "/os-release"), ()
    root = find_root(source, table)
    if root is None:
        return None, ()
    try:
        version = read_os_release(source, root).get("VERSION")
    except ImageError as error:
        return None, (f"The version of the OS is not known: {error}",)
    return OsVersion(version, root.number, OS_RELEASE_PATH) if version else None, ()


def _report_partitions(
    source: Source, table: PartitionTable, boot: BootPartition, version: OsVersion | None
) -> tuple[tuple[PartitionReport, ...], tuple[str, ...]]:
    """Every partition, and what is doubtful of their filesystems.

    A stream is not decoded any further for it than it was before: up to the partition that
    follows the boot partition, or the one with the version.
    """
    reach = max(
        each.extent.end if each.number == boot.partition.number else each.extent.start
        for each in table.partitions
        if each.number == boot.partition.number or (version and each.number == version.partition)
    )
    reports: dict[int, PartitionReport] = {}
    warnings: list[str] = []
    for partition in sorted(table.partitions, key=lambda each: each.extent.start):
        was_read = source.seekable or partition.extent.start <= reach
        report = PartitionReport(partition, None, was_read=was_read)
        if was_read and partition.kind is not PartitionKind.EXTENDED:
            report, about = _report_partition(source, partition)
            warnings += about
        reports[partition.number] = report
    return tuple(reports[each.number] for each in table.partitions), tuple(warnings)


def _report_partition(
    source: Source, partition: Partition
) -> tuple[PartitionReport, tuple[str, ...]]:
    filesystem = recognise_filesystem(source, partition.extent)
    if filesystem is None:
        return PartitionReport(partition, None), ()
    reading = read_fill(source, partition.extent, filesystem)
    return PartitionReport(partition, filesystem, reading.fill), reading.warnings


def _warn_of_clone(facts: BalenaFacts) -> tuple[str, ...]:
    if not facts.is_clone:
        return ()
    return ("The disk of this image has booted: all boards written from it would be the same one.",)
