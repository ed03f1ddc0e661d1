"""Everything there is to know about an image, without changing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from balenaflash.boot.config_json import masked
from balenaflash.image.balenaos import BalenaFacts, BootPartition, find_boot_partition, read_facts
from balenaflash.image.fat import FatVolume
from balenaflash.image.filesystems import Filesystem, probe
from balenaflash.image.opening import open_for_reading
from balenaflash.image.partitions import (
    Partition,
    PartitionKind,
    PartitionTable,
    read_table,
)
from balenaflash.image.source import Container


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

    warnings: tuple[str, ...]


def inspect(path: Path, *, show_secrets: bool = False) -> ImageReport:
    """Look into the image at ``path``.

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
        return ImageReport(
            path=path,
            container=source.container,
            size=source.size,
            table=table,
            partitions=tuple(
                PartitionReport(
                    partition,
                    None
                    if partition.kind is PartitionKind.EXTENDED
                    else probe(source, partition.extent),
                )
                for partition in table.partitions
            ),
            boot=BootReport(boot, volume.fat_bits, volume.total_bytes, volume.free_bytes),
            facts=facts,
            config=config,
            warnings=(
                *image.warnings,
                *table.warnings,
                *boot.warnings,
                *facts.warnings,
                *volume.problems(),
            ),
        )
