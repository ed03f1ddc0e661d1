"""Where the content of a file lies in the image."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.source import Source

MAX_RUNS = 4_000_000
"""Pieces of one file: each takes 16 bytes of memory."""

_ZEROS = memoryview(bytes(1 << 20))


class FileMap:
    """The pieces of a file in order; what lies between them is zero.

    A piece is counted in units: blocks, or bytes for content inside an inode. ``base`` is where
    the physical unit 0 lies, in bytes from the start of the image.
    """

    def __init__(
        self, source: Source, *, size: int, unit: int, base: int, most: int = MAX_RUNS
    ) -> None:
        self.size = size
        self._source = source
        self._unit = unit
        self._base = base
        self._most = most
        # Arrays, not objects: a file in 100,000s of pieces is still small in memory.
        self._logical = array("I")
        self._physical = array("Q")
        self._count = array("I")

    def add(self, logical: int, physical: int, count: int) -> None:
        """Add a piece behind all those before; one behind the end of the file is left out.

        Raises:
            ImageError: there are too many.
        """
        if logical * self._unit >= self.size:
            return
        if self._logical and self._continues(logical, physical, count):
            self._count[-1] += count
            return
        if len(self._logical) >= self._most:
            raise ImageError(
                f"{self._source.name}: a file is in more than {self._most} pieces",
                code="ext4-unsupported",
            )
        self._logical.append(logical)
        self._physical.append(physical)
        self._count.append(count)

    def runs(
        self, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[Extent, Extent | None]]:
        """Each piece of ``[start, end)``, by default of the whole file, and where it lies.

        In ascending order and without gaps. The second is in the image, or ``None`` for zeros
        that are not stored: a hole, or space allocated and never written.
        """
        end = self.size if end is None else end
        index = max(0, bisect_right(self._logical, start // self._unit) - 1)
        while start < end and index < len(self._logical):
            first = self._logical[index] * self._unit
            last = min(end, first + self._count[index] * self._unit)
            if start < first:
                yield Extent(start, min(first, end)), None
                start = first
            if start < last:
                place = self._base + self._physical[index] * self._unit + start - first
                yield Extent(start, last), Extent(place, place + last - start)
                start = last
            index += 1
        if start < end:
            yield Extent(start, end), None

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the content from ``offset`` on, which the file must have.

        Raises:
            ImageError: the image cannot be read.
        """
        for piece, place in self.runs(offset, offset + len(buffer)):
            part = buffer[piece.start - offset : piece.end - offset]
            if place is not None:
                self._source.readinto(place.start, part)
                continue
            for start in range(0, len(part), len(_ZEROS)):
                zeroed = part[start : start + len(_ZEROS)]
                zeroed[:] = _ZEROS[: len(zeroed)]

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of content from ``offset`` on; as ``readinto``."""
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def _continues(self, logical: int, physical: int, count: int) -> bool:
        """Whether the piece lies right behind the last one, here and in the image."""
        last = self._count[-1]
        return (
            self._logical[-1] + last == logical
            and self._physical[-1] + last == physical
            and last + count < 1 << 32
        )
