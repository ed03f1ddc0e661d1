"""The marks that a probe puts on a medium, and where it puts them."""

import math
import mmap
import os
from collections.abc import Iterator

from balenaflash.extent import MIB, SECTOR_SIZE, Extent
from balenaflash.target.medium import Medium

MARK_SIZE = 4096
"""Bytes of a mark: a multiple of every logical sector size."""

_NONCE_SIZE = 16
_HEADER_SIZE = _NONCE_SIZE + 8
_CHUNK = 4 * MIB
_SMALLEST_STRETCH = MIB
_BALANCE = 100_000
"""Bytes that a slow card writes in one piece while it writes one mark somewhere: 20 MB/s, 5 ms."""


class Marks:
    """Blocks whose every sector tells its address, and which probe it is of."""

    def __init__(self) -> None:
        self._nonce = os.urandom(_NONCE_SIZE)
        self._fill = os.urandom(SECTOR_SIZE - _HEADER_SIZE)

    def make(self, offset: int, length: int = MARK_SIZE) -> bytes:
        """What belongs at ``offset``."""
        return b"".join(
            self._nonce + place.to_bytes(8, "little") + self._fill
            for place in range(offset, offset + length, SECTOR_SIZE)
        )

    def claims(self, found: memoryview, offset: int) -> Iterator[tuple[int, int]]:
        """Of each sector in ``found``, read at ``offset``: its place, and where it belongs."""
        for start in range(0, len(found), SECTOR_SIZE):
            header = bytes(found[start : start + _HEADER_SIZE])
            if header.startswith(self._nonce):
                yield offset + start, int.from_bytes(header[_NONCE_SIZE:], "little")


class Block:
    """Some bytes of a medium, written and read past every cache."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._buffer = memoryview(mmap.mmap(-1, _CHUNK))

    def put(self, offset: int, content: bytes) -> None:
        """Write ``content``; it need not be on the medium yet."""
        self._buffer[: len(content)] = content
        self._medium.write(offset, self._buffer[: len(content)])

    def write(self, offset: int, content: bytes) -> None:
        """Write ``content``, and have it on the medium."""
        self.put(offset, content)
        self._medium.begin_read_back()

    def read(self, offset: int, length: int = MARK_SIZE) -> memoryview:
        """What is at ``offset``, until something else is read or written."""
        self._medium.readinto(offset, self._buffer[:length])
        return self._buffer[:length]


def layout(size: int) -> Iterator[Extent]:
    """Where the marks go on a medium of ``size`` bytes, ascending.

    The first stretch is marked without a gap, and as long as the distance of the marks behind it:
    whatever the real size, one of those lands in it where addresses wrap around.
    """
    end = align_down(size)
    stretch = max(_SMALLEST_STRETCH, align_down(math.isqrt(size * _BALANCE), MIB))
    for start in range(0, min(stretch, end), _CHUNK):
        yield Extent(start, min(start + _CHUNK, stretch, end))
    last = end - MARK_SIZE
    for start in range(stretch, last, stretch):
        yield Extent(start, start + MARK_SIZE)
    if last >= stretch:
        yield Extent(last, end)


def align_down(offset: int, unit: int = MARK_SIZE) -> int:
    """``offset`` rounded down to a multiple of ``unit``."""
    return offset // unit * unit
