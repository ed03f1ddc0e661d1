"""Block maps: which blocks of an image hold data, and a checksum of each run of them.

A block map (``.bmap``) lies beside an image and lets bmaptool copy the blocks it lists alone. What
is here is the map itself; ``bmap_xml`` reads and writes its file, ``bmap_beside`` keeps the file
beside an image true to it.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from balenaflash.errors import ImageError
from balenaflash.extent import MIB, Extent
from balenaflash.image.source import Source

CHECKSUM_TYPES = frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"})
"""What a map may be hashed with, as ``hashlib`` names it; bmaptool itself writes sha256."""

_CHUNK_SIZE = MIB


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A run of blocks that hold data."""

    first: int
    """Number of the first block, from 0."""

    last: int
    """Number of the last block, itself included."""

    checksum: str | None = None
    """Hexadecimal digest of the blocks' bytes; ``None`` in a map without checksums."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Bmap:
    """A block map whose numbers agree with each other."""

    image_size: int
    """Bytes of the image it belongs to; the last block may be cut short by the image's end."""

    block_size: int
    """In bytes."""

    ranges: tuple[MappedRange, ...]
    """In order, none overlapping another; two may be adjacent."""

    checksum_type: str = "sha256"
    """One of ``CHECKSUM_TYPES``."""

    @property
    def blocks(self) -> int:
        """Number of blocks of the image, the last one counted whole."""
        return -(-self.image_size // self.block_size)

    @property
    def mapped_blocks(self) -> int:
        """Number of blocks that hold data."""
        return sum(mapped.blocks for mapped in self.ranges)

    def extent_of(self, mapped: MappedRange) -> Extent:
        """The bytes of the image that ``mapped`` stands for."""
        end = min((mapped.last + 1) * self.block_size, self.image_size)
        return Extent(mapped.first * self.block_size, end)


def differing_ranges(bmap: Bmap, source: Source) -> tuple[Extent, ...]:
    """The ranges of ``source`` that do not have the checksum their map gives, in order.

    Ranges without a checksum cannot differ; blocks that are not mapped are not looked at.

    Raises:
        ImageError: the map is of an image of another size, or ``source`` cannot be read.
    """
    require_same_size(bmap, source)
    return tuple(_differing(bmap, source, bmap.ranges))


def updated(
    bmap: Bmap, before: Source, after: Source, changed: Sequence[Extent]
) -> tuple[Bmap, tuple[Extent, ...]]:
    """The map of ``after``, and the ranges for which ``bmap`` was not true of ``before``.

    ``changed`` are the extents in which the two differ. Only ranges that they touch are read.
    Blocks that they touch and that were not mapped get ranges of their own. Where the second
    answer is not empty, something else changed the image since the map was made and may have
    used blocks that the map does not list: the map should then not be used.

    Raises:
        ImageError: the map is of an image of another size, or a source cannot be read.
    """
    require_same_size(bmap, before)
    blocks = _merged(_blocks_of(bmap, extent) for extent in changed)
    touched, untouched = _parted(bmap.ranges, blocks)
    untrue = tuple(_differing(bmap, before, touched))
    # All or none: bmaptool makes maps with and without checksums.
    has_checksums = all(mapped.checksum is not None for mapped in bmap.ranges)
    renewed = [
        replace(mapped, checksum=_digest(bmap, after, mapped) if has_checksums else None)
        for mapped in _merged([*touched, *blocks])
    ]
    return replace(bmap, ranges=tuple(sorted([*untouched, *renewed], key=_first_block))), untrue


def require_same_size(bmap: Bmap, source: Source) -> None:
    """Refuse a map that is of another image than ``source``.

    Raises:
        ImageError: their sizes differ.
    """
    if bmap.image_size != source.size:
        raise ImageError(
            f"{source.name}: has {source.size} bytes, but its block map is of an image of "
            f"{bmap.image_size} bytes",
            code="bmap-foreign",
        )


def _differing(bmap: Bmap, source: Source, ranges: Iterable[MappedRange]) -> Iterator[Extent]:
    for mapped in ranges:
        if mapped.checksum is not None and mapped.checksum != _digest(bmap, source, mapped):
            yield bmap.extent_of(mapped)


def _digest(bmap: Bmap, source: Source, mapped: MappedRange) -> str:
    extent = bmap.extent_of(mapped)
    digest = hashlib.new(bmap.checksum_type, usedforsecurity=False)
    for offset in range(extent.start, extent.end, _CHUNK_SIZE):
        digest.update(source.read(offset, min(_CHUNK_SIZE, extent.end - offset)))
    return digest.hexdigest()


def _blocks_of(bmap: Bmap, extent: Extent) -> MappedRange:
    return MappedRange(extent.start // bmap.block_size, (extent.end - 1) // bmap.block_size)


def _merged(ranges: Iterable[MappedRange]) -> list[MappedRange]:
    """``ranges`` in order and without checksums, those that overlap or are adjacent made one."""
    merged: list[MappedRange] = []
    for mapped in sorted(ranges, key=_first_block):
        if merged and mapped.first <= merged[-1].last + 1:
            last = max(merged[-1].last, mapped.last)
            merged[-1] = MappedRange(merged[-1].first, last)
        else:
            merged.append(MappedRange(mapped.first, mapped.last))
    return merged


def _parted(
    ranges: Iterable[MappedRange], blocks: Sequence[MappedRange]
) -> tuple[list[MappedRange], list[MappedRange]]:
    """Those of ``ranges`` that share a block with ``blocks``, which are in order, and the rest."""
    touched: list[MappedRange] = []
    untouched: list[MappedRange] = []
    for mapped in ranges:
        # The last run that does not begin behind the range is the only one to look at: those
        # before it end where it begins, or earlier.
        index = bisect_right(blocks, mapped.last, key=_first_block) - 1
        meets = index >= 0 and blocks[index].last >= mapped.first
        (touched if meets else untouched).append(mapped)
    return touched, untouched


def _first_block(mapped: MappedRange) -> int:
    return mapped.first
