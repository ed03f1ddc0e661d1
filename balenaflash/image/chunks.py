"""An image cut into chunks, read and hashed by a thread that stays ahead of its user."""

import mmap
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import xxhash

from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.source import Source

_READ_AHEAD = 3
"""Chunks in memory beside the one in use: two cannot bridge a pause of the source."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some of an image, as it goes to a medium."""

    extent: Extent
    """Its place on the medium; the end is rounded up to the medium's alignment."""

    size: int
    """Bytes of it that come from the image; the rest is zero."""

    buffer: memoryview
    """The bytes of ``extent``, page-aligned; valid until the next chunk is asked for."""

    digest: bytes
    """`chunk_digest` of the buffer; empty with a fault."""

    fault: ImageError | None
    """Why the image could not be read here; the buffer then holds nothing of use."""


def chunk_digest(buffer: memoryview) -> bytes:
    """XXH3 128 of ``buffer``: it finds accidents, not forgeries, at the speed of memory."""
    return xxhash.xxh3_128_digest(buffer)


def read_ahead(
    source: Source, extents: Iterable[Extent], *, largest: int, alignment: int
) -> Generator[Chunk]:
    """The chunks at ``extents`` in that order, none of them longer than ``largest`` bytes.

    A fault of the source is handed on as a chunk, so that its user knows how far it came.
    """
    buffers = [mmap.mmap(-1, largest) for _ in range(_READ_AHEAD + 1)]
    pending: deque[Future[Chunk]] = deque()
    numbered = enumerate(extents)
    pool = ThreadPoolExecutor(1, "read-ahead")

    def submit(count: int) -> None:
        for number, extent in islice(numbered, count):
            buffer = buffers[number % len(buffers)]
            pending.append(pool.submit(_load, source, extent, buffer, alignment))

    try:
        submit(_READ_AHEAD)
        while pending:
            submit(1)  # into the buffer of the chunk that the caller is through with
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(source: Source, extent: Extent, buffer: mmap.mmap, alignment: int) -> Chunk:
    size = extent.size
    padded = -(-size // alignment) * alignment
    view = memoryview(buffer)[:padded]
    place = Extent(extent.start, extent.start + padded)
    try:
        source.readinto(extent.start, view[:size])
    except ImageError as error:
        return Chunk(place, size, view, b"", error)
    view[size:] = bytes(padded - size)
    return Chunk(place, size, view, chunk_digest(view), None)
