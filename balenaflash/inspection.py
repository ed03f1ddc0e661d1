"""Everything there is to know about an image, without changing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balenaflash.boot.config_json import masked
from balenaflash.boot.fingerprint import FingerprintReport, listed_paths
from balenaflash.boot.fingerprint import check as check_fingerprint
from balenaflash.boot.invalidation import find_overwritten, warn_of_low_space
from balenaflash.boot.network import Network, list_networks
from balenaflash.card_records import warn_of_cut_off
from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.balenaos import BalenaFacts, BootPartition, find_boot_partition, read_facts
from balenaflash.image.bmap.beside import find_beside, read_bmap
from balenaflash.image.bmap.block_map import Bmap, differing_ranges, require_same_size
from balenaflash.image.fat.volume import FatEntry, FatVolume
from balenaflash.image.filesystems import Filesystem, probe
from balenaflash.image.opening import open_for_reading
from balenaflash.image.source import Container, Source
from balenaflash.image.table.partitions import (
    Partition,
    PartitionKind,
    PartitionTable,
    read_table,
)


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """A partition and what is on it."""

    partition: Partition
    filesystem: Filesystem | None
    """``None`` where no filesystem is recognised."""


@dataclass(frozen=True, slots=True)
class BootReport:
    """The boot partition: which, why, how full."""

    partition: BootPartition
    fat_bits: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class FilesReport:
    """The files of the boot partition."""

    count: int
    largest: FatEntry | None
    """A host OS update needs room for twice its size; ``None`` where there are no files."""

    networks: tuple[Network, ...]
    fingerprint: FingerprintReport | None
    overwritten: tuple[str, ...] | None
    """Those that differ from the fingerprint and that the next host OS update replaces; ``None``
    where they were not read."""


@dataclass(frozen=True, slots=True)
class BmapReport:
    """The block map that bmaptool would take for the image."""

    path: Path
    bmap: Bmap | None
    """What it says; ``None`` where it is of no use."""

    fault: str | None
    """Why it is of no use."""

    differing: tuple[Extent, ...] | None
    """Mapped ranges of the image that have another checksum; ``None`` where none was read."""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What ``inspect`` tells."""

    path: Path
    container: Container
    size: int
    table: PartitionTable
    partitions: tuple[PartitionReport, ...]
    boot: BootReport
    facts: BalenaFacts
    config: Mapping[str, object] | None
    """config.json with its secrets masked, unless they were asked for."""

    files: FilesReport | None
    """``None`` where the boot partition is too damaged to tell."""

    bmap: BmapReport | None
    warnings: tuple[str, ...]


def inspect(
    path: Path, *, show_secrets: bool = False, check_files: bool = False, check_bmap: bool = False
) -> ImageReport:
    """Look into the image at ``path``.

    ``check_files`` reads all files of the boot partition, a matter of a tenth of a second or two
    for a file and of seconds for a card; ``check_bmap`` reads all that the block map lists.

    Raises:
        ImageError: it is not an image of balenaOS layout, or cannot be read.
    """
    with open_for_reading(path) as image:
        source = image.source
        table = read_table(source)
        boot = find_boot_partition(source, table)
        volume = FatVolume.open(source, boot.partition.extent)
        facts = read_facts(volume, boot)
        config = facts.config
        if config is not None and not show_secrets:
            config = masked(config)
        files, about_files = _report_files(volume, check=check_files)
        return ImageReport(
            path=path,
            container=source.container,
            size=source.size,
            table=table,
            partitions=tuple(_report_partition(source, each) for each in table.partitions),
            boot=BootReport(boot, volume.fat_bits, volume.total_bytes, volume.free_bytes),
            facts=facts,
            config=config,
            files=files,
            bmap=_report_bmap(path, source, check=check_bmap),
            warnings=(
                *image.warnings,
                *warn_of_cut_off(path),
                *table.warnings,
                *boot.warnings,
                *facts.warnings,
                *_warn_of_clone(facts),
                *about_files,
                *volume.problems(),
            ),
        )


def _report_partition(source: Source, partition: Partition) -> PartitionReport:
    if partition.kind is PartitionKind.EXTENDED:
        return PartitionReport(partition, None)
    return PartitionReport(partition, probe(source, partition.extent))


def _report_files(volume: FatVolume, *, check: bool) -> tuple[FilesReport | None, tuple[str, ...]]:
    """What there is to tell of the files, and to warn of."""
    try:
        files = [entry for entry in volume.walk() if not entry.is_directory]
        fingerprint = check_fingerprint(volume, contents=check)
        overwritten = None
        if fingerprint is not None and fingerprint.differing is not None:
            overwritten = tuple(find_overwritten(fingerprint.differing, listed_paths(volume)))
        report = FilesReport(
            count=len(files),
            largest=max(files, key=lambda entry: entry.size, default=None),
            networks=list_networks(volume),
            fingerprint=fingerprint,
            overwritten=overwritten,
        )
    except ImageError as error:
        return None, (str(error),)
    return report, tuple(warn_of_low_space(volume))


def _report_bmap(image: Path, source: Source, *, check: bool) -> BmapReport | None:
    path = find_beside(image)
    if path is None:
        return None
    try:
        bmap = read_bmap(path)
        require_same_size(bmap, source)
    except ImageError as error:
        return BmapReport(path, None, str(error), None)
    return BmapReport(path, bmap, None, differing_ranges(bmap, source) if check else None)


def _warn_of_clone(facts: BalenaFacts) -> tuple[str, ...]:
    if not facts.is_clone:
        return ()
    return ("The disk of this image has booted: all boards written from it would be the same one.",)
