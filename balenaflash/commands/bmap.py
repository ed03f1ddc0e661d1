"""Make the block map of an image, and compare an image with its block map.

A map made from the holes of a sparse file leaves out zeros that files and filesystems are made
of; an image copied by it has the bytes there that the medium had before. A map made here leaves
out only the blocks that are free in a filesystem, and lists zeros like data.
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
from balenaflash.durable import is_same_file
from balenaflash.errors import ImageError, refusal
from balenaflash.formats.contents import BLOCK_SIZE, Allocation, Content, FreeCursor, classify
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import Source
from balenaflash.source.block_map import Bmap, MappedRange, require_same_size, serialise
from balenaflash.source.location import ImageLocation, find_image_path, output_mode
from balenaflash.source.map_beside import find_beside, read_bmap
from balenaflash.source.opening import open_for_reading
from balenaflash.targets.file import require_place, write_file
from balenaflash.targets.unmount import require_no_writer
from balenaflash.units import MIB, Extent, align_down, format_size, merge

_READ_AHEAD = 2  # buffers beside the one in use

_RANGE_SIZE = 4 * MIB
"""Most bytes of a range: each is hashed by itself, and a difference is found to that precision.
A multiple of the block size."""

_SCAN_CHUNK = 16 * MIB
"""Bytes read at a time, three of these in memory: ranges enough for each thread that hashes."""

_COMPARE_CHUNK = 4 * MIB
_THREADS = min(4, os.cpu_count() or 1)  # a chunk has four whole ranges

_MAX_RANGES = 130_000
"""As many as fit the largest file that is read as a block map (`balenaflash.source.block_map`)."""

_CHECKSUM_TYPE = "sha256"  # what bmaptool writes
_NAME_MAX = 255  # bytes, linux/limits.h
_SUFFIX = ".bmap"
_NAME_ONE = "Name a file with -o."

_Loaded = tuple[Extent, memoryview, list[Extent]]


@dataclass(frozen=True, slots=True)
class CreatedBmap:
    """A block map, and what its image consists of."""

    bmap: Bmap

    bytes_of: dict[Content, int]
    """Bytes of each kind, together the size of the image; the map leaves out the free ones."""

    faults: dict[int, str]
    """Fault of a filesystem by number of its partition, all of which counts as in use."""


@dataclass(frozen=True, slots=True)
class BmapCheck:
    """An image compared with a block map."""

    path: Path
    """The file of the block map."""

    bmap: Bmap
    differing: tuple[Extent, ...]
    """Ranges of the image that have another checksum, adjacent ones in one piece."""

    left_out: int | None
    """Bytes not in the map that the image has in use; ``None`` if that is unknown."""

    warnings: tuple[str, ...]

    @property
    def compared_bytes(self) -> int:
        """Bytes of the ranges that have a checksum."""
        return sum(self.bmap.extent_of(mapped).size for mapped in _with_checksum(self.bmap))


def create(
    image: ImageLocation, out: Path | None, *, overwrite: bool = False, progress: Progress
) -> tuple[Path, CreatedBmap, tuple[str, ...]]:
    """Make the block map of ``image`` in the file ``out``, or beside it; whole or not at all.

    The map of a compressed image is that of its decompressed content, as for bmaptool. The result
    is the file, the map in it, and warnings.

    Raises:
        ImageError: the image cannot be read, or is not one of balenaOS layout.
        EditError: another process is editing it.
        TargetRefusedError: ``out`` exists and ``overwrite`` is not set, or it cannot be made.
    """
    place = out or _beside(image)
    with open_for_reading(image) as opened:
        # Before the image is read, which takes time, and once more after it.
        _require_place(place, image, overwrite=overwrite)
        require_no_writer(find_image_path(image))
        disk = BalenaImage(opened.source, opened.warnings)
        created = create_bmap(opened.source, disk.table, progress)
        opened.source.finish()
        warnings = (*opened.warnings, *disk.table.warnings, *_warn_of_edit(disk))
    _require_place(place, image, overwrite=overwrite)
    content = serialise(created.bmap)
    write_file(place, content, overwrite=overwrite, mode=output_mode(image))
    faults = (
        f"partition {number}: all of it counts as in use: {fault}"
        for number, fault in sorted(created.faults.items())
    )
    return place, created, (*warnings, *faults)


def check(image: ImageLocation, bmap_path: Path | None, *, progress: Progress) -> BmapCheck:
    """Compare ``image`` with the block map at ``bmap_path``, or with the one beside it.

    Raises:
        ImageError: the map is missing, not valid or its own checksum does not match, it is
            that of an image of another size, or one of the two cannot be read.
        EditError: another process is editing the image.
    """
    path = bmap_path or (find_beside(image) if isinstance(image, Path) else None)
    if path is None:
        raise ImageError(
            f"{image}: has no block map beside it",
            code="bmap-missing",
            hint="Name one with --bmap, or make one: balenaflash bmap create IMAGE",
        )
    bmap = read_bmap(path)
    with open_for_reading(image) as opened:
        left_out = _left_out(opened.source, bmap)
        differing = compare_with_bmap(opened.source, bmap, progress)
        opened.source.finish()
        warnings = opened.warnings
    if left_out:
        text = (
            f"{path}: leaves out {format_size(left_out)} that the image has in use: "
            "copied by it, files may have bytes that were on the medium before"
        )
        warnings += (text,)
    if len(_with_checksum(bmap)) < len(bmap.ranges):
        warnings += (f"{path}: has ranges without a checksum, which were not compared",)
    return BmapCheck(path, bmap, differing, left_out, warnings)


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
    # A stream whose size is known only at its end is not smaller than its table says.
    planned = align_down(table.end, BLOCK_SIZE) if source.size is None else source.size
    with phase(progress, Phase.BUILD, source.size):
        scan.read(Extent(0, planned), progress)
        size = source.measure()
        scan.read(Extent(planned, size), progress)
    bmap = Bmap(size, BLOCK_SIZE, tuple(scan.ranges), _CHECKSUM_TYPE)
    return CreatedBmap(bmap, scan.bytes_of, allocation.faults)


@dataclass(slots=True)
class _Scan:
    """The result so far."""

    source: Source
    cursor: FreeCursor
    ranges: list[MappedRange] = field(default_factory=list)
    bytes_of: dict[Content, int] = field(default_factory=lambda: dict.fromkeys(Content, 0))

    def read(self, extent: Extent, progress: Progress) -> None:
        """Read the bytes of ``extent``, which begin where those before ended."""
        chunks = read_ahead(self.source, extent.cut(_SCAN_CHUNK), _SCAN_CHUNK, self.cursor)
        # hashlib releases the interpreter lock, so the threads do hash at the same time.
        with closing(chunks), ThreadPoolExecutor(_THREADS, "hash") as pool:
            for place, buffer, free in chunks:
                self._add(place.start, buffer, free, pool)
                progress.advance(place.size)

    def _add(
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
    """Whole ranges of zeros are a large part of most images, and are not hashed each time."""
    return _digest(bytes(size))


def _with_checksum(bmap: Bmap) -> list[MappedRange]:
    return [mapped for mapped in bmap.ranges if mapped.checksum is not None]


def compare_with_bmap(source: Source, bmap: Bmap, progress: Progress) -> tuple[Extent, ...]:
    """The ranges that differ from ``bmap``, in order; all ranges with a checksum are read once.

    Raises:
        ImageError: the map is that of an image of another size (``bmap-foreign``), or ``source``
            cannot be read.
    """
    if source.size is not None:
        require_same_size(bmap, source)
    ranges = _with_checksum(bmap)
    total = sum(bmap.extent_of(mapped).size for mapped in ranges)
    with phase(progress, Phase.VERIFY, total), source.sequential():
        differing = tuple(merge(_differing(source, bmap, ranges, progress)))
    # A stream's size, and whether it is whole, is known only at its end.
    source.measure()
    require_same_size(bmap, source)
    return differing


def left_out_in_use(source: Source, table: PartitionTable, bmap: Bmap) -> int:
    """Bytes that ``bmap`` does not list, and that are not free in a filesystem of the image.

    Copied by such a map to a medium that is not all zeros, the image has bytes of the medium in
    files and tables. Only the tables of free blocks are read.
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
    """Ranges that are not listed, in order."""
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
    extents = map(bmap.extent_of, ranges)
    pieces = (piece for extent in extents for piece in extent.cut(_COMPARE_CHUNK))
    with closing(read_ahead(source, pieces, _COMPARE_CHUNK)) as chunks:
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


def read_ahead(
    source: Source, extents: Iterable[Extent], largest: int, cursor: FreeCursor | None = None
) -> Generator[tuple[Extent, memoryview, list[Extent]]]:
    """Each of ``extents``, none longer than ``largest`` bytes, its bytes, and free ranges of it.

    The free ranges are those of ``cursor``, which reads its tables before the bytes pass. The
    bytes are valid until the next ones are requested. The generator must be closed if it is not
    read to its end.

    Raises:
        ImageError: the image cannot be read there; ranges before it were yielded.
    """
    buffers = cycle([memoryview(mmap.mmap(-1, largest)) for _ in range(_READ_AHEAD + 1)])
    pool = ThreadPoolExecutor(1, "read-ahead")

    def load(extent: Extent, buffer: memoryview) -> _Loaded:
        free = [] if cursor is None else cursor.take(extent)
        # Only this: the cursor may read its tables again.
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
            # The buffer that the caller has finished with is the next to be filled.
            while len(pending) <= _READ_AHEAD and (future := next(waiting, None)) is not None:
                pending.append(future)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _warn_of_edit(image: BalenaImage) -> tuple[str, ...]:
    try:
        return image.mark_warnings
    except ImageError as error:
        if error.code in {"boot-partition-missing", "fat-invalid"}:
            return ()  # it can have a block map nevertheless
        raise


def _left_out(source: Source, bmap: Bmap) -> int | None:
    """`BmapCheck.left_out`; unknown for a stream, which would have to be read twice."""
    if not source.seekable or source.size != bmap.image_size:
        return None
    try:
        return left_out_in_use(source, read_table(source), bmap)
    except ImageError as error:
        if error.code in {"table-missing", "table-invalid"}:
            return None
        raise


def _beside(image: ImageLocation) -> Path:
    if not isinstance(image, Path):
        raise refusal("target-missing", f"{image}: a block map cannot be made beside it", _NAME_ONE)
    name = image.name + _SUFFIX
    if len(os.fsencode(name)) > _NAME_MAX:
        raise refusal(
            "target-name",
            f"{image}: the name of a block map beside it would be too long",
            _NAME_ONE,
        )
    return image.with_name(name)


def _require_place(place: Path, image: ImageLocation, *, overwrite: bool) -> None:
    if isinstance(image, Path) and is_same_file(place, image):
        raise refusal("target-is-image", f"{place}: is the image itself", _NAME_ONE)
    require_place(place, overwrite=overwrite)
