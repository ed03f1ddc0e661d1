"""What a partition table says, whoever has read it."""

from dataclasses import dataclass
from enum import StrEnum

from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.units import Extent


class TableKind(StrEnum):
    """The partition tables that balenaOS uses, by libparted's names."""

    MSDOS = "msdos"
    GPT = "gpt"


class PartitionKind(StrEnum):
    """Where a partition is listed; all those of a GPT are primary."""

    PRIMARY = "primary"
    EXTENDED = "extended"
    LOGICAL = "logical"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of an image."""

    number: int
    """As Linux counts: the slot in the table, from 1; logical partitions from 5."""

    extent: Extent
    """Its bytes, from the start of the image; an extended partition encloses its logical ones."""

    kind: PartitionKind

    type_id: str
    """``0x0c`` on msdos; on GPT the type GUID in capitals."""

    name: str | None
    """The name a GPT gives, ``None`` on msdos. It may hold anything, control characters too."""

    uuid: str | None
    """The partition's own GUID in capitals, ``None`` on msdos."""

    flags: tuple[str, ...] = ()
    """libparted's names, sorted."""


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """The partitions of an image, in the order of their numbers, and what was odd."""

    kind: TableKind

    sector_size: int
    """Bytes of the sectors the table counts in: 512, or 4096."""

    disk_id: str
    """``0x1234abcd`` on msdos; on GPT the disk GUID in capitals."""

    partitions: tuple[Partition, ...]

    warnings: tuple[str, ...] = ()
    """Sentences about what is wrong and did not hinder the reading."""

    disk_size: int | None = None
    """Bytes of the disk by the GPT's own word; ``None`` on msdos, which does not tell."""

    is_complete: bool = True
    """False where logical partitions were not looked for: they lie too far into a stream."""

    @property
    def end(self) -> int:
        """Offset one past the last byte that the table speaks of: the image is not smaller."""
        return self.disk_size or max((each.extent.end for each in self.partitions), default=0)


@dataclass(frozen=True, slots=True, order=True)
class TableSectors:
    """Whole sectors that hold a part of a table."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    data: bytes

    @property
    def extent(self) -> Extent:
        """The bytes of the image they take."""
        return Extent(self.offset, self.offset + len(self.data))


@dataclass(frozen=True, slots=True)
class TableReading:
    """A table, and exactly the sectors it was read from."""

    table: PartitionTable

    sectors: tuple[TableSectors, ...]
    """In ascending order; sectors of a damaged copy of a GPT are not among them."""

    made_up: tuple[TableSectors, ...] = ()
    """What libparted is shown in place of ``sectors``, where it could not read those.

    Of a GPT without the protective record."""


def invalid_table(source: Source, fact: str, *, hint: str | None = None) -> ImageError:
    """The error for a table that contradicts itself; ``fact`` ends the sentence."""
    return ImageError(f"{source.name}: {fact}", code="table-invalid", hint=hint)


def refuse_truncated(source: Source, end: int) -> None:
    """Raise unless the image has all the bytes up to ``end``, which its table speaks of.

    Of a stream that does not tell its size it is found out later.

    Raises:
        ImageError: it is too short; the message says by how much.
    """
    if source.size is not None and end > source.size:
        raise ImageError(
            f"{source.name}: is cut off: its partition table reaches byte {end}, "
            f"but the image ends at byte {source.size}; {end - source.size} bytes are missing",
            code="image-truncated",
            hint="The file is probably an incomplete download or copy.",
        )
