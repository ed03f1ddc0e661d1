"""What will be written where, in which order, before anything is."""

from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.extent import MIB, Extent, format_size
from balenaflash.image.balenaos import find_boot_partition
from balenaflash.image.source import Source
from balenaflash.image.table.partitions import Partition, PartitionTable, read_table

CHUNK_SIZE = 4 * MIB
"""Bytes per request: large enough for the medium's full speed, and balenaOS aligns to it."""

HEAD_SIZE = MIB
"""Bytes at the start that are written last: partition table and first boot code."""


@dataclass(frozen=True, slots=True)
class WritePlan:
    """The order in which an image goes to a target."""

    image_size: int
    """Bytes of the image."""

    table: PartitionTable
    """The image's own table, which gives places their names."""

    wiped: Extent
    """Zeroed before anything else, so that what was on the target cannot boot half-replaced."""

    written: tuple[Extent, ...]
    """Disjoint ranges, in the order in which they are written; the head comes last."""

    @property
    def bytes_written(self) -> int:
        """Bytes of image content that go to the target; the wiped ones are extra."""
        return sum(extent.size for extent in self.written)

    def chunks(self) -> Iterator[Extent]:
        """``written`` cut at multiples of ``CHUNK_SIZE``, in the same order."""
        for extent in self.written:
            start = extent.start
            while start < extent.end:
                end = min((start // CHUNK_SIZE + 1) * CHUNK_SIZE, extent.end)
                yield Extent(start, end)
                start = end


def plan_write(source: Source) -> WritePlan:
    """A plan that writes every byte of ``source``, its head last.

    Raises:
        ImageError: it is not a whole image of balenaOS layout.
    """
    table = read_table(source)
    find_boot_partition(source, table)
    head = Extent(0, min(HEAD_SIZE, source.size))
    rest = Extent(head.end, source.size)
    return WritePlan(
        image_size=source.size,
        table=table,
        wiped=head,
        written=(rest, head) if rest.size else (head,),
    )


def describe_place(table: PartitionTable, offset: int) -> str:
    """In words, what lies at ``offset`` of the image: a partition, or the space around them."""
    partition = find_partition(table, offset)
    if partition is None:
        return "outside every partition"
    name = f" ({partition.name})" if partition.name else ""
    inside = format_size(offset - partition.extent.start)
    return f"partition {partition.number}{name}, {inside} into it"


def find_partition(table: PartitionTable, offset: int) -> Partition | None:
    """The innermost partition that holds the byte at ``offset``; ``None`` outside of all."""
    holding = [part for part in table.partitions if part.extent.contains(offset)]
    return min(holding, key=lambda part: part.extent.size, default=None)
