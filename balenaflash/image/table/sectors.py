"""Partition tables read without a library: which sectors hold them, and what those say.

libparted can be shown those sectors alone, and it does not tell type GUIDs, UUIDs, which
copy of a GPT is damaged, or that an image is cut off (libparted 3.5). Everything in a
table is checked here before libparted sees it, for it ends the process when one of its own
assertions fails.
"""

from dataclasses import replace
from itertools import pairwise

from balenaflash.errors import ImageError
from balenaflash.extent import MIB, SECTOR_SIZE, Extent
from balenaflash.image import filesystems
from balenaflash.image.foreign import refuse_foreign
from balenaflash.image.source import Source
from balenaflash.image.table.gpt import read_gpt
from balenaflash.image.table.mbr import find_protective, read_entries, read_mbr
from balenaflash.image.table.model import (
    PartitionKind,
    TableReading,
    invalid_table,
)

_PROBED = MIB  # bytes; every signature that is looked for lies within


def read_table_sectors(source: Source) -> TableReading:
    """The partition table of an image, without libparted's flags, and the sectors it lies in.

    Raises:
        ImageError: there is no table (``table-missing``), it contradicts itself
            (``table-invalid``), or the image is shorter than it says (``image-truncated``).
        ImageError: it is not a disk image (``image-foreign``).
    """
    if source.size is not None and source.size < SECTOR_SIZE:
        raise _missing(source)
    sector = source.read(0, SECTOR_SIZE)
    if find_protective(sector) is not None:
        reading = read_gpt(source, sector)
    else:
        entries = read_entries(sector)
        if entries is None or (not entries and _probe_whole(source) is not None):
            raise _missing(source)
        reading = _warn_of_fat(source, read_mbr(source, sector, entries))
    _refuse_overlaps(source, reading)
    return reading


def _warn_of_fat(source: Source, reading: TableReading) -> TableReading:
    whole = _probe_whole(source)
    if whole is None or whole.type != "vfat":
        return reading
    warning = (
        "The boot record is also that of a FAT: Linux reads its partitions, but blkid and "
        "parted see one filesystem."
    )
    warnings = (*reading.table.warnings, warning)
    return replace(reading, table=replace(reading.table, warnings=warnings))


def _missing(source: Source) -> ImageError:
    refuse_foreign(source)
    whole = _probe_whole(source)
    if whole is not None:
        fact = f"is one {whole.type} filesystem, without a partition table"
    else:
        fact = "holds no partition table"
    return ImageError(
        f"{source.name}: {fact}",
        code="table-missing",
        hint="A raw balenaOS image starts with an msdos partition table or a GPT.",
    )


def _probe_whole(source: Source) -> filesystems.Filesystem | None:
    """A filesystem that starts where the image does; only its first MiB is looked at."""
    size = _PROBED if source.size is None else min(source.size, _PROBED)
    return filesystems.probe(source, Extent(0, size))


def _refuse_overlaps(source: Source, reading: TableReading) -> None:
    """Raise if a byte belongs to two partitions, or to a partition and to the table."""
    extended = [
        each.extent for each in reading.table.partitions if each.kind is PartitionKind.EXTENDED
    ]
    records = [(run.extent, "the partition table") for run in reading.sectors]
    # Extended boot records lie inside the extended partition, between the logical ones.
    inner = [each for each in records if any(area.encloses(each[0]) for area in extended)]
    outer = [each for each in records if each not in inner]
    for partition in reading.table.partitions:
        listed = inner if partition.kind is PartitionKind.LOGICAL else outer
        listed.append((partition.extent, f"partition {partition.number}"))
    for areas in (sorted(outer), sorted(inner)):
        for (one, its_name), (other, other_name) in pairwise(areas):
            if one.overlaps(other):
                raise invalid_table(source, f"{its_name} and {other_name} overlap")
