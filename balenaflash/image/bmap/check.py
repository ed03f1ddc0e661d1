"""Compare an image with its block map, range by range, as fast as it can be read."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from balenaflash.extent import MIB, Extent
from balenaflash.image.allocation import Allocation, intersection
from balenaflash.image.bmap.block_map import Bmap, MappedRange, require_same_size
from balenaflash.image.bmap.reading import read_ahead
from balenaflash.image.source import Source
from balenaflash.image.table.model import PartitionTable
from balenaflash.progress import Phase, Progress, phase

_CHUNK_SIZE = 4 * MIB


@dataclass(frozen=True, slots=True)
class BmapComparison:
    """How far an image is what its block map says."""

    compared_bytes: int
    """Bytes of the ranges that have a checksum."""

    differing: tuple[Extent, ...]
    """Those of other content, adjacent ones in one piece, in order."""


def compare_with_bmap(source: Source, bmap: Bmap, progress: Progress) -> BmapComparison:
    """Read all that ``bmap`` has checksums of, once and in order.

    Raises:
        ImageError: the map is of an image of another size (``bmap-foreign``), or ``source``
            cannot be read.
    """
    if source.size is not None:
        require_same_size(bmap, source)
    ranges = [mapped for mapped in bmap.ranges if mapped.checksum is not None]
    total = sum(bmap.extent_of(mapped).size for mapped in ranges)
    with phase(progress, Phase.VERIFY, total), source.sequential():
        differing = tuple(_joined(_differing(source, bmap, ranges, progress)))
    # Of a stream the size, and whether it is whole, is known at its end.
    source.measure()
    require_same_size(bmap, source)
    return BmapComparison(total, differing)


def left_out_in_use(source: Source, table: PartitionTable, bmap: Bmap) -> int:
    """Bytes that ``bmap`` does not list, and that are not free in a filesystem of the image.

    Copied by such a map to a medium that is not all zeros, the image gets bytes of the
    medium's in files and tables. Nothing but what tells the free blocks is read.
    """
    gaps = list(_gaps(bmap))
    unlisted = sum(gap.size for gap in gaps)
    index = 0
    for free in Allocation(source, table).free_extents():
        while index < len(gaps) and gaps[index].end <= free.start:
            index += 1
        for gap in gaps[index:]:
            common = intersection(gap, free)
            if common is None:
                break
            unlisted -= common.size
    return unlisted


def _gaps(bmap: Bmap) -> Iterator[Extent]:
    """What is not listed, in order."""
    position = 0
    for extent in map(bmap.extent_of, bmap.ranges):
        if position < extent.start:
            yield Extent(position, extent.start)
        position = extent.end
    if position < bmap.image_size:
        yield Extent(position, bmap.image_size)


def _differing(
    source: Source, bmap: Bmap, ranges: list[MappedRange], progress: Progress
) -> Iterator[Extent]:
    chunks = read_ahead(source, _cut(bmap, ranges), _CHUNK_SIZE)
    with closing(chunks):
        for mapped in ranges:
            extent = bmap.extent_of(mapped)
            digest = hashlib.new(bmap.checksum_type, usedforsecurity=False)
            position = extent.start
            while position < extent.end:
                place, buffer, _free = next(chunks)
                digest.update(buffer)
                progress.advance(place.size)
                position = place.end
            if digest.hexdigest() != mapped.checksum:
                yield extent


def _cut(bmap: Bmap, ranges: list[MappedRange]) -> Iterator[Extent]:
    """The pieces of ``ranges`` that are read at a time; none belongs to two ranges."""
    for extent in map(bmap.extent_of, ranges):
        for start in range(extent.start, extent.end, _CHUNK_SIZE):
            yield Extent(start, min(start + _CHUNK_SIZE, extent.end))


def _joined(extents: Iterator[Extent]) -> Iterator[Extent]:
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.end == extent.start:
            last = Extent(last.start, extent.end)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last
