"""Where a target does not hold what it should."""

from collections.abc import Iterable
from dataclasses import dataclass

from balenaflash.extent import SECTOR_SIZE, Extent
from balenaflash.image.chunks import ChunkRecord
from balenaflash.image.contents import BLOCK_SIZE


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """A run of sectors that do not hold what they should."""

    extent: Extent
    """Whole sectors, in bytes from the start of the target."""

    first_byte: int
    """Offset of the first byte that differs."""

    reads_zeros: bool
    """Whether the sectors hold nothing but zeros."""


def find_differences(
    record: ChunkRecord, wanted: memoryview, found: memoryview
) -> tuple[Difference, ...]:
    """The runs of sectors in the pieces of ``record`` where ``found`` is not ``wanted``.

    Both hold the record's extent; of its last sector only the image's own bytes count.
    """
    runs: list[Difference] = []
    base = record.extent.start
    for piece in record.pieces:
        for block in _cut(piece.extent, BLOCK_SIZE):
            start, end = block.start - base, block.end - base
            if bytes(wanted[start:end]) != bytes(found[start:end]):
                for sector in _cut(block, SECTOR_SIZE):
                    _compare_sector(runs, sector, base, wanted, found)
    return tuple(runs)


def _compare_sector(
    runs: list[Difference], sector: Extent, base: int, wanted: memoryview, found: memoryview
) -> None:
    one = bytes(wanted[sector.start - base : sector.end - base])
    other = bytes(found[sector.start - base : sector.end - base])
    if one == other:
        return
    zeros = not any(other)
    # The last sector of an image may be shorter; what differs is a sector all the same.
    end = -(-sector.end // SECTOR_SIZE) * SECTOR_SIZE
    if runs and runs[-1].extent.end == sector.start:
        last = runs.pop()
        merged = Extent(last.extent.start, end)
        runs.append(Difference(merged, last.first_byte, last.reads_zeros and zeros))
        return
    first = next(index for index, byte in enumerate(other) if byte != one[index])
    runs.append(Difference(Extent(sector.start, end), sector.start + first, zeros))


def _cut(extent: Extent, size: int) -> Iterable[Extent]:
    start = extent.start
    while start < extent.end:
        end = min((start // size + 1) * size, extent.end)
        yield Extent(start, end)
        start = end
