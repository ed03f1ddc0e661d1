"""Make the block map of an image: one that may be used on a medium that holds something.

A map made from the holes of a sparse file leaves out zeros that files and filesystems are made
of; copied by it, they have the bytes that were on the medium before. Here only those blocks are
left out that are free in a filesystem, and zeros are listed like data.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby

from balenaflash.errors import ImageError
from balenaflash.extent import MIB, Extent
from balenaflash.image.allocation import Allocation, FreeCursor
from balenaflash.image.bmap.block_map import Bmap, MappedRange
from balenaflash.image.bmap.reading import read_ahead
from balenaflash.image.contents import BLOCK_SIZE, Kind, Run, classify
from balenaflash.image.source import Source
from balenaflash.image.table.model import PartitionTable
from balenaflash.progress import Phase, Progress, phase

_RANGE_SIZE = 4 * MIB
"""Bytes of a range at most: each is hashed by itself, and a difference is found to that precision.
A multiple of the block size."""

_CHUNK_SIZE = 16 * MIB
"""Bytes read at a time, three of these in memory: ranges enough for each thread that hashes."""

_THREADS = min(4, os.cpu_count() or 1)  # a chunk has four whole ranges

_MAX_RANGES = 130_000
"""What fits the largest file that is read as a block map (`balenaflash.image.bmap.xml`)."""

_CHECKSUM_TYPE = "sha256"  # what bmaptool writes


@dataclass(frozen=True, slots=True)
class CreatedBmap:
    """A block map, and what the image it is of consists of."""

    bmap: Bmap

    bytes_of: dict[Kind, int]
    """Bytes of each kind; together the size of the image."""

    faults: dict[int, str]
    """By number of the partition, why a filesystem was not taken at its word: all of it counts
    as in use."""


def create_bmap(source: Source, table: PartitionTable, progress: Progress) -> CreatedBmap:
    """The block map of ``source``, whose partition table is ``table``; it is read once.

    Raises:
        ImageError: the image cannot be read, is damaged or cut short, or needs more ranges than
            a block map may have (``bmap-too-large``).
    """
    allocation = Allocation(source, table)
    extents: Iterator[Extent]
    if source.seekable:
        extents = filter(_holds_a_block, allocation.free_extents())
    else:
        extents = allocation.free_extents_as_reached()
    scan = _Scan(source, FreeCursor(extents))
    # A stream that tells its size at the end is no smaller than its table says.
    planned = table.end // BLOCK_SIZE * BLOCK_SIZE if source.size is None else source.size
    with phase(progress, Phase.BUILD, source.size):
        scan.read(Extent(0, planned), progress)
        size = source.measure()
        scan.read(Extent(planned, size), progress)
    bmap = Bmap(size, BLOCK_SIZE, tuple(scan.ranges), _CHECKSUM_TYPE)
    return CreatedBmap(bmap, scan.bytes_of, allocation.faults)


@dataclass(slots=True)
class _Scan:
    """What was found so far."""

    source: Source
    cursor: FreeCursor
    ranges: list[MappedRange] = field(default_factory=list)
    bytes_of: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))

    def read(self, extent: Extent, progress: Progress) -> None:
        """Take in the bytes of ``extent``, which begin where those before ended."""
        chunks = read_ahead(self.source, _cut(extent, _CHUNK_SIZE), _CHUNK_SIZE, self.cursor)
        # hashlib lets go of the interpreter's lock, so that threads do hash at the same time.
        with closing(chunks), ThreadPoolExecutor(_THREADS, "hash") as pool:
            for place, buffer, free in chunks:
                self._take(place.start, buffer, free, pool)
                progress.advance(place.size)

    def _take(
        self, start: int, buffer: memoryview, free: list[Extent], pool: ThreadPoolExecutor
    ) -> None:
        runs = classify(buffer, start, free)
        for run in runs:
            self.bytes_of[run.kind] += run.extent.size
        zeros = [run.extent for run in runs if run.kind is Kind.ZERO]

        def digest(piece: Extent) -> str:
            if any(zero.encloses(piece) for zero in zeros if zero.size >= _RANGE_SIZE):
                return _digest_of_zeros(piece.size)
            return _digest(buffer[piece.start - start : piece.end - start])

        pieces = [piece for extent in _used(runs) for piece in _cut(extent, _RANGE_SIZE)]
        for piece, checksum in zip(pieces, pool.map(digest, pieces), strict=True):
            last = (piece.end - 1) // BLOCK_SIZE
            self.ranges.append(MappedRange(piece.start // BLOCK_SIZE, last, checksum))
        if len(self.ranges) > _MAX_RANGES:
            raise ImageError(
                f"{self.source.name}: needs a block map of more than {_MAX_RANGES} ranges",
                code="bmap-too-large",
            )


def _used(runs: Iterable[Run]) -> Iterator[Extent]:
    """The extents of data and zeros, adjacent ones in one piece."""
    for is_free, group in groupby(runs, lambda run: run.kind is Kind.FREE):
        extents = [run.extent for run in group]
        if not is_free:
            yield Extent(extents[0].start, extents[-1].end)


def _cut(extent: Extent, size: int) -> Iterator[Extent]:
    """``extent`` cut at the multiples of ``size``."""
    start = extent.start
    while start < extent.end:
        end = min((start // size + 1) * size, extent.end)
        yield Extent(start, end)
        start = end


def _holds_a_block(extent: Extent) -> bool:
    return -(-extent.start // BLOCK_SIZE) < extent.end // BLOCK_SIZE


def _digest(content: memoryview | bytes) -> str:
    return hashlib.new(_CHECKSUM_TYPE, content, usedforsecurity=False).hexdigest()


@lru_cache(maxsize=16)
def _digest_of_zeros(size: int) -> str:
    """A large part of most images is whole ranges of zeros, which need no hashing each time."""
    return _digest(bytes(size))
