"""Make the block map of an image, and compare an image with its block map.

A map made from the holes of a sparse file leaves out zeros that files and filesystems are made
of; copied by it, they have the bytes that were on the medium before. Here only those blocks are
left out that are free in a filesystem, and zeros are listed like data.
"""

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle
from pathlib import Path

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.image_file import output_mode, require_unused
from balenaflash.durable import is_same_file
from balenaflash.errors import ImageError, refusal
from balenaflash.formats.contents import BLOCK_SIZE, Allocation, Content, FreeCursor, classify
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import Source
from balenaflash.source.block_map import Bmap, MappedRange, require_same_size, serialise
from balenaflash.source.location import ImageLocation
from balenaflash.source.map_beside import find_beside, read_bmap
from balenaflash.source.opening import open_for_reading
from balenaflash.targets.file import require_place, write_file
from balenaflash.units import MIB, Extent, align_down, format_size, merge

_READ_AHEAD = 2
"""Buffers beside the one in use."""

_Loaded = tuple[Extent, memoryview, list[Extent]]


def read_ahead(
    source: Source, extents: Iterable[Extent], largest: int, cursor: FreeCursor | None = None
) -> Generator[tuple[Extent, memoryview, list[Extent]]]:
    """Each of ``extents``, none longer than ``largest`` bytes, its bytes, and what of it is free.

    ``cursor`` tells that, from what it reads before the bytes themselves pass.

    These are valid until the next are asked for. To be closed where it is not read to its end.

    Raises:
        ImageError: the image cannot be read there; ranges before it were handed on.
    """
    buffers = cycle([memoryview(mmap.mmap(-1, largest)) for _ in range(_READ_AHEAD + 1)])
    pool = ThreadPoolExecutor(1, "read-ahead")

    def load(extent: Extent, buffer: memoryview) -> _Loaded:
        free = [] if cursor is None else cursor.take(extent)
        # Only this: what the cursor reads, it may want to read again.
        with source.sequential():
            source.readinto(extent.start, buffer)
        return extent, buffer, free

    def submitted() -> Iterator[Future[_Loaded]]:
        for extent in extents:
            yield pool.submit(load, extent, next(buffers)[: extent.size])

    waiting = submitted()
    pending: deque[Future[_Loaded]] = deque()
    try:
        while True:
            # The buffer of the range that the caller is through with is the next to be filled.
            while len(pending) <= _READ_AHEAD and (future := next(waiting, None)) is not None:
                pending.append(future)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_RANGE_SIZE = 4 * MIB
"""Bytes of a range at most: each is hashed by itself, and a difference is found to that precision.
A multiple of the block size."""

_SCAN_CHUNK = 16 * MIB
"""Bytes read at a time, three of these in memory: ranges enough for each thread that hashes."""

_THREADS = min(4, os.cpu_count() or 1)  # a chunk has four whole ranges

_MAX_RANGES = 130_000
"""What fits the largest file that is read as a block map (`balenaflash.source.block_map`)."""

_CHECKSUM_TYPE = "sha256"  # what bmaptool writes


@dataclass(frozen=True, slots=True)
class CreatedBmap:
    """A block map, and what the image it is of consists of."""

    bmap: Bmap

    bytes_of: dict[Content, int]
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
        found = allocation.free_extents()
        extents = (extent for extent in found if extent.whole_blocks(BLOCK_SIZE).size)
    else:
        extents = allocation.free_extents_as_reached()
    scan = _Scan(source, FreeCursor(extents))
    # A stream that tells its size at the end is no smaller than its table says.
    planned = align_down(table.end, BLOCK_SIZE) if source.size is None else source.size
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
    bytes_of: dict[Content, int] = field(default_factory=lambda: dict.fromkeys(Content, 0))

    def read(self, extent: Extent, progress: Progress) -> None:
        """Take in the bytes of ``extent``, which begin where those before ended."""
        chunks = read_ahead(self.source, extent.cut(_SCAN_CHUNK), _SCAN_CHUNK, self.cursor)
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
            self.bytes_of[run.content] += run.extent.size
        zeros = [run.extent for run in runs if run.content is Content.ZERO]

        def digest(piece: Extent) -> str:
            if any(zero.encloses(piece) for zero in zeros if zero.size >= _RANGE_SIZE):
                return _digest_of_zeros(piece.size)
            return _digest(buffer[piece.start - start : piece.end - start])

        used = merge(run.extent for run in runs if run.content is not Content.FREE)
        pieces = [piece for extent in used for piece in extent.cut(_RANGE_SIZE)]
        for piece, checksum in zip(pieces, pool.map(digest, pieces), strict=True):
            last = (piece.end - 1) // BLOCK_SIZE
            self.ranges.append(MappedRange(piece.start // BLOCK_SIZE, last, checksum))
        if len(self.ranges) > _MAX_RANGES:
            raise ImageError(
                f"{self.source.name}: needs a block map of more than {_MAX_RANGES} ranges",
                code="bmap-too-large",
            )


def _digest(content: memoryview | bytes) -> str:
    return hashlib.new(_CHECKSUM_TYPE, content, usedforsecurity=False).hexdigest()


@lru_cache(maxsize=16)
def _digest_of_zeros(size: int) -> str:
    """A large part of most images is whole ranges of zeros, which need no hashing each time."""
    return _digest(bytes(size))


_COMPARE_CHUNK = 4 * MIB


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
        differing = tuple(merge(_differing(source, bmap, ranges, progress)))
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
            common = gap.intersection(free)
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
    chunks = read_ahead(source, _cut_mapped(bmap, ranges), _COMPARE_CHUNK)
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


def _cut_mapped(bmap: Bmap, ranges: list[MappedRange]) -> Iterator[Extent]:
    """The pieces of ``ranges`` that are read at a time; none belongs to two ranges."""
    for extent in map(bmap.extent_of, ranges):
        for start in range(extent.start, extent.end, _COMPARE_CHUNK):
            yield Extent(start, min(start + _COMPARE_CHUNK, extent.end))


_NAME_MAX = 255  # bytes, linux/limits.h
_SUFFIX = ".bmap"
_NAME_ONE = "Name a file with -o."


@dataclass(frozen=True, slots=True)
class BmapCreation:
    """A block map that was made."""

    path: Path
    bmap: Bmap
    bytes_of: dict[Content, int]
    """Bytes of the image by kind; what is free is not in the map."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BmapCheck:
    """An image compared with a block map."""

    path: Path
    """Of the block map."""

    bmap: Bmap
    compared_bytes: int
    """Bytes of the ranges that have checksums."""

    differing: tuple[Extent, ...]
    """Ranges of the image of other content than the map says, adjacent ones in one piece."""

    left_out: int | None
    """Bytes not in the map that the image has in use; ``None`` where that cannot be told."""

    warnings: tuple[str, ...]


def create(
    image: ImageLocation, out: Path | None, *, overwrite: bool = False, progress: Progress
) -> BmapCreation:
    """Make the block map of ``image`` in the file ``out``, or beside it; whole or not at all.

    Of a compressed image it is the map of what comes out of it, as bmaptool has it.

    Raises:
        ImageError: the image cannot be read, or is not one of balenaOS layout.
        EditError: another process is editing it.
        TargetRefusedError: ``out`` exists and ``overwrite`` is not set, or it cannot be made.
    """
    place = out or _beside(image)
    # Now, for reading the image takes time; and again when it has passed.
    _require_place(place, image, overwrite=overwrite)
    with open_for_reading(image) as opened:
        require_unused(image)
        opened_image = BalenaImage(opened.source, opened.warnings)
        table = opened_image.table
        created = create_bmap(opened.source, table, progress)
        opened.source.finish()
        warnings = (*opened.warnings, *table.warnings, *_warn_of_edit(opened_image))
    _require_place(place, image, overwrite=overwrite)
    content = serialise(created.bmap)
    write_file(place, content, overwrite=overwrite, mode=output_mode(image))
    faults = (
        f"partition {number}: all of it counts as in use: {fault}"
        for number, fault in sorted(created.faults.items())
    )
    return BmapCreation(place, created.bmap, created.bytes_of, (*warnings, *faults))


def check(image: ImageLocation, bmap_path: Path | None, *, progress: Progress) -> BmapCheck:
    """Compare ``image`` with the block map at ``bmap_path``, or with the one beside it.

    Raises:
        ImageError: there is no map, it is not valid or its own checksum does not match, it is
            of an image of another size, or one of the two cannot be read.
        EditError: another process is editing the image.
    """
    path = bmap_path or (find_beside(image) if isinstance(image, Path) else None)
    if path is None:
        raise ImageError(
            f"{image}: has no block map beside it",
            code="bmap-missing",
            hint="Name one with --bmap, or make one with balenaflash bmap create.",
        )
    bmap = read_bmap(path)
    with open_for_reading(image) as opened:
        left_out = _left_out(opened.source, bmap)
        comparison = compare_with_bmap(opened.source, bmap, progress)
        opened.source.finish()
        warnings = opened.warnings
    if left_out:
        warnings += (_word_of_left_out(path, left_out),)
    if any(mapped.checksum is None for mapped in bmap.ranges):
        warnings += (f"{path}: has ranges without a checksum, which were not compared",)
    return BmapCheck(
        path, bmap, comparison.compared_bytes, comparison.differing, left_out, warnings
    )


def _warn_of_edit(image: BalenaImage) -> tuple[str, ...]:
    try:
        return image.mark_warnings
    except ImageError as error:
        if error.code in {"boot-partition-missing", "fat-invalid"}:
            return ()  # it has a block map all the same
        raise


def _left_out(source: Source, bmap: Bmap) -> int | None:
    """As `BmapCheck.left_out`; in a stream it would take a second pass to know."""
    if not source.seekable or source.size != bmap.image_size:
        return None
    try:
        return left_out_in_use(source, read_table(source), bmap)
    except ImageError as error:
        if error.code in {"table-missing", "table-invalid"}:
            return None
        raise


def _word_of_left_out(path: Path, size: int) -> str:
    return (
        f"{path}: leaves out {format_size(size)} that the image has in use: "
        "copied by it, files may hold what was on the medium before"
    )


def _beside(image: ImageLocation) -> Path:
    if not isinstance(image, Path):
        raise refusal(
            "target-missing", f"{image}: has no place beside it for a block map", _NAME_ONE
        )
    name = image.name + _SUFFIX
    if len(os.fsencode(name)) > _NAME_MAX:
        raise refusal(
            "target-name", f"{image}: its name is too long for a block map beside it", _NAME_ONE
        )
    return image.with_name(name)


def _require_place(place: Path, image: ImageLocation, *, overwrite: bool) -> None:
    if isinstance(image, Path) and is_same_file(place, image):
        raise refusal("target-is-image", f"{place}: is the image itself", _NAME_ONE)
    require_place(place, overwrite=overwrite)
