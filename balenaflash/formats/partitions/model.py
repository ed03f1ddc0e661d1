"""A partition table and its partitions, as read from an image."""

from dataclasses import dataclass
from enum import StrEnum

from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.source.container.decoder import DOWNLOAD_AGAIN
from balenaflash.units import Extent


class TableKind(StrEnum):
    """The partition tables that balenaOS uses, by libparted's names."""

    MSDOS = "msdos"
    GPT = "gpt"


class PartitionKind(StrEnum):
    """The kind of a partition; all partitions of a GPT are primary."""

    PRIMARY = "primary"
    EXTENDED = "extended"
    LOGICAL = "logical"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of an image."""

    number: int
    """Number in Linux: the slot in the table, from 1; logical partitions from 5."""

    extent: Extent
    """Bytes of the image; an extended partition encloses its logical ones."""

    kind: PartitionKind

    type_id: str
    """Type, such as ``0x0c`` on msdos; on GPT the type GUID in capitals."""

    name: str | None
    """Name in a GPT, ``None`` on msdos. It may contain any characters, also control characters."""

    uuid: str | None
    """GUID of the partition in capitals, ``None`` on msdos."""

    flags: tuple[str, ...] = ()
    """Flags by libparted's names, sorted."""


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The partitions of an image, in the order of their numbers, and warnings about them."""

    kind: TableKind

    sector_size: int
    """Bytes of a sector of the table: 512 or 4096."""

    disk_id: str
    """Disk identifier, such as ``0x1234abcd``, on msdos; on GPT the disk GUID in capitals."""

    partitions: tuple[Partition, ...]

    warnings: tuple[str, ...] = ()
    """Sentences about faults that did not prevent the reading."""

    disk_size: int | None = None
    """Size of the disk in the GPT, in bytes; ``None`` on msdos, which does not store it."""

    is_complete: bool = True
    """False if logical partitions were not read, because they are too far into a stream."""

    @property
    def end(self) -> int:
        """Offset one past the last byte that the table describes; the image is not smaller."""
        return self.disk_size or max((each.extent.end for each in self.partitions), default=0)


@dataclass(frozen=True, slots=True, order=True)
class TableSectors:
    """Whole sectors that contain a part of a table."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    data: bytes

    @property
    def extent(self) -> Extent:
        """Bytes of the image that they occupy."""
        return Extent(self.offset, self.offset + len(self.data))


@dataclass(frozen=True, slots=True)
class TableReading:
    """A table, and exactly the sectors it was read from."""

    table: PartitionTable
    sectors: tuple[TableSectors, ...]
    """Sectors in ascending order, without those of a damaged copy of a GPT."""

    made_up: tuple[TableSectors, ...] = ()
    """Sectors for libparted, where it cannot read ``sectors``; for a GPT without the protective
    record."""


def invalid_table(source: Source, fact: str, *, hint: str | None = None) -> ImageError:
    """The error for an invalid table; ``fact`` ends the sentence."""
    return ImageError(f"{source.name}: {fact}", code="table-invalid", hint=hint)


def refuse_truncated(source: Source, end: int) -> None:
    """Raise if the image ends before the byte ``end``, which its table names.

    A stream of unknown size passes; its end is checked later.

    Raises:
        ImageError: the image is too short; the message contains the number of missing bytes.
    """
    if source.size is not None and end > source.size:
        raise ImageError(
            f"{source.name}: is truncated: its partition table needs bytes up to {end}, "
            f"but the image ends at byte {source.size}; {end - source.size} bytes are missing",
            code="image-truncated",
            hint=DOWNLOAD_AGAIN,
        )
