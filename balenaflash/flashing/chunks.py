"""An image cut into chunks, and what of each chunk a target must hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import xxhash

from balenaflash.errors import ImageError
from balenaflash.formats.contents import Content, Run
from balenaflash.units import KIB, MIB, Extent, merge

CHUNK_SIZE = 4 * MIB
"""Bytes per chunk: large enough for a medium's full speed, and balenaOS aligns to it."""

_SMALLEST_ZEROS = 64 * KIB
"""Bytes of zeros below which a request of their own takes longer than writing them."""

_SMALLEST_GAP = 16 * KIB
"""Free bytes below which a request more takes longer than writing them."""

_LARGEST_REREAD = 256 * KIB
"""Free bytes up to which reading them, too, is faster than another request."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a chunk that a target must hold."""

    extent: Extent
    """In bytes from the start of the image.

    It starts at a multiple of 4 KiB or, past the image, at that of a sector.
    """

    is_zero: bool
    """Whether all of it is zero: a device can be told so."""


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """What a range of a target must hold."""

    extent: Extent
    """In bytes from the start of the image, at most ``CHUNK_SIZE``."""

    pieces: tuple[Piece, ...]
    """Ascending and disjoint; what of the extent is in none may be left as it is."""

    digest: bytes
    """XXH3 128 of the pieces, one after another; empty where nobody will compare."""

    @property
    def size(self) -> int:
        """Bytes that the target must hold."""
        return sum(piece.extent.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of an image, as it goes to a target."""

    number: int
    """Its place among the chunks, from 0."""

    record: ChunkRecord

    buffer: memoryview
    """The bytes of the record's extent and zeros up to a multiple of 4 KiB, page-aligned."""

    fault: ImageError | None = None
    """Why the image could not be read here; the record is then empty."""


def make_record(
    extent: Extent, buffer: memoryview, runs: Iterable[Run], *, has_digest: bool
) -> ChunkRecord:
    """The record of the chunk ``extent``, whose bytes are in ``buffer``."""
    pieces = merge_runs(runs)
    digest = pieces_digest(pieces, buffer, extent.start) if has_digest else b""
    return ChunkRecord(extent, pieces, digest)


def record_bytes(offset: int, content: bytes) -> ChunkRecord:
    """The record of ``content`` at ``offset``, in one piece."""
    extent = Extent(offset, offset + len(content))
    return ChunkRecord(extent, (Piece(extent, is_zero=False),), xxhash.xxh3_128_digest(content))


def pieces_digest(pieces: Iterable[Piece], buffer: memoryview, start: int) -> bytes:
    """XXH3 128 of ``pieces`` within ``buffer``, whose first byte is the image's at ``start``.

    It finds accidents, not forgeries, at the speed of memory.
    """
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(buffer[piece.extent.start - start : piece.extent.end - start])
    return digest.digest()


def merge_runs(runs: Iterable[Run]) -> tuple[Piece, ...]:
    """What is to be written of ``runs``: few requests, and hardly a byte more than data and zeros.

    Short runs of zeros are written with the data beside them, and so are short free ranges
    between.
    """
    pieces: list[Piece] = []
    for run in runs:
        if run.content is Content.FREE:
            continue
        is_zero = run.content is Content.ZERO and run.extent.size >= _SMALLEST_ZEROS
        extent = run.extent
        if pieces and pieces[-1].is_zero == is_zero and _is_near(pieces[-1].extent, extent):
            extent = Extent(pieces.pop().extent.start, extent.end)
        pieces.append(Piece(extent, is_zero))
    return tuple(pieces)


def _is_near(one: Extent, other: Extent) -> bool:
    gap = other.start - one.end
    return gap == 0 or gap < _SMALLEST_GAP


def spans(pieces: Sequence[Piece]) -> list[Extent]:
    """The ranges to read in order to see all ``pieces``; short gaps between are read as well."""
    return list(merge((piece.extent for piece in pieces), gap=_LARGEST_REREAD))
