"""The chunks of an image, and what a target must hold of each."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import xxhash

from balenaflash.errors import ImageError
from balenaflash.formats.contents import Content, Run
from balenaflash.targets.medium import Medium
from balenaflash.units import KIB, MIB, Extent, align_up, merge

CHUNK_SIZE = 4 * MIB
"""Bytes per chunk: large enough for a medium's full speed, and balenaOS aligns to it."""

_SMALLEST_ZEROS = 64 * KIB
"""Bytes of zeros below which a separate request takes longer than writing them."""

_SMALLEST_GAP = 16 * KIB
"""Free bytes below which one more request takes longer than writing them."""

_LARGEST_REREAD = 256 * KIB
"""Free bytes up to which reading them, too, is faster than one more request."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a chunk that a target must hold."""

    extent: Extent
    """Range in bytes from the start of the image.

    It starts at a multiple of 4 KiB or, past the image, of a sector.
    """

    is_zero: bool
    """True if all of it is zero: a device can zero such a range itself."""


@dataclass(frozen=True, slots=True)
class ChunkDigest:
    """The pieces of a chunk, and a digest to compare a target with."""

    extent: Extent
    """Range in bytes from the start of the image, at most ``CHUNK_SIZE`` long."""

    pieces: tuple[Piece, ...]
    """Ascending and disjoint. In the gaps between them a target may hold anything."""

    xxh3: bytes
    """XXH3 128 of the pieces, one after another; empty if nothing is going to be compared."""

    @property
    def size(self) -> int:
        """Bytes that the target must hold."""
        return sum(piece.extent.size for piece in self.pieces)

    def hash(self, buffer: memoryview) -> bytes:
        """XXH3 128 of the pieces as they are in ``buffer``, which holds the extent.

        It finds accidents, not forgeries, at the speed of memory.
        """
        base = self.extent.start
        hasher = xxhash.xxh3_128()
        for piece in self.pieces:
            hasher.update(buffer[piece.extent.start - base : piece.extent.end - base])
        return hasher.digest()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an image on its way to a target."""

    number: int
    """Position among the chunks, from 0."""

    digest: ChunkDigest

    buffer: memoryview
    """The bytes of the digest's extent, then zeros up to a multiple of 4 KiB; page-aligned."""

    fault: ImageError | None = None
    """Error at which reading the image ended here; the digest is then empty."""


def make_digest(
    extent: Extent, buffer: memoryview, runs: Iterable[Run], *, has_digest: bool
) -> ChunkDigest:
    """The digest of the chunk at ``extent``, whose bytes are in ``buffer``."""
    digest = ChunkDigest(extent, _merge_runs(runs), b"")
    return replace(digest, xxh3=digest.hash(buffer)) if has_digest else digest


def _merge_runs(runs: Iterable[Run]) -> tuple[Piece, ...]:
    """The data and zeros of ``runs`` in few requests, with hardly a byte more.

    Short runs of zeros are written with the data beside them, short free ranges with what is
    around them.
    """
    pieces: list[Piece] = []
    for run in runs:
        if run.content is Content.FREE:
            continue
        extent = run.extent
        is_zero = run.content is Content.ZERO and extent.size >= _SMALLEST_ZEROS
        if (
            pieces
            and pieces[-1].is_zero == is_zero
            and extent.start - pieces[-1].extent.end < _SMALLEST_GAP
        ):
            extent = Extent(pieces.pop().extent.start, extent.end)
        pieces.append(Piece(extent, is_zero))
    return tuple(pieces)


def read_pieces(medium: Medium, digest: ChunkDigest, buffer: memoryview) -> None:
    """Read the pieces of ``digest`` from ``medium`` to their places in ``buffer``.

    Short gaps between them are read, too.

    Raises:
        WriteError: the medium cannot be read.
    """
    for span in merge((piece.extent for piece in digest.pieces), gap=_LARGEST_REREAD):
        start = span.start - digest.extent.start
        medium.readinto(span.start, buffer[start : start + align_up(span.size, medium.alignment)])


def holds(medium: Medium, digest: ChunkDigest, buffer: memoryview) -> bool:
    """True if ``medium`` holds the pieces of ``digest``; ``buffer`` has what was read.

    Raises:
        WriteError: the medium cannot be read.
    """
    read_pieces(medium, digest, buffer)
    return digest.hash(buffer) == digest.xxh3
