"""Where the blocks of bzip2 streams are, told by the magic number that each starts with.

Sections are those of Joe Tsai's "BZIP2: Format Specification" (2016).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.extent import MIB
from balenaflash.image.container.decoder import Input

BLOCK_MAGIC = 0x314159265359
"""First 48 bits of a block; section 2.2.3."""

END_MAGIC = 0x177245385090
"""First 48 bits of what ends a stream; section 2.2.2."""

MAGIC_BITS = 48

STREAM_HEADER = 4
"""Bytes of a stream's header: BZh and the size of its blocks; section 2.2.1."""

_MAGIC_BYTES = 7
"""Bytes that hold 48 bits wherever they start."""

_MAX_RUN = 4 * MIB
"""Bytes, above those of any block: it has 900,000 symbols of up to 20 bits, and tables."""

_READ_SIZE = MIB


@dataclass(frozen=True, slots=True)
class Bits:
    """A run of bits that starts and ends anywhere in a byte."""

    data: bytes
    """The bytes that hold it."""

    first: int
    """Bits to leave out at the start; fewer than 8."""

    length: int
    place: int
    """Offset in the file of the first byte of ``data``."""

    @property
    def value(self) -> int:
        """The bits as a number, the first one the highest."""
        behind = len(self.data) * 8 - self.first - self.length
        return int.from_bytes(self.data, "big") >> behind & (1 << self.length) - 1

    def __add__(self, other: "Bits") -> "Bits":
        """These bits and those that come right behind them in the file."""
        own = other.place - self.place
        data = self.data[:own] + other.data
        return Bits(data, self.first, self.length + other.length, self.place)


def find_bits(data: bytes, magic: int) -> list[int]:
    """Where, in bits, the 48 bits of ``magic`` stand in ``data``, in order."""
    found: list[int] = []
    for shift in range(8):
        pattern = (magic << 8 - shift).to_bytes(7, "big")
        # The bytes that the magic fills; what it shares with others is compared behind.
        core, start = (pattern[:6], 0) if shift == 0 else (pattern[1:6], 1)
        place = data.find(core, start)
        while place >= 0:
            around = int.from_bytes(data[place - start : place - start + 7].ljust(7, b"\0"), "big")
            if around >> 8 - shift & (1 << MAGIC_BITS) - 1 == magic:
                found.append((place - start) * 8 + shift)
            place = data.find(core, place + 1)
    return sorted(found)


def split(source: Input) -> Iterator[Bits]:
    """The bits from each block's magic to the next one's, the last ones to the end of the file.

    ``source`` stands at a stream's header; where no block follows, the bits are those from it on.
    Bits without a magic among them are cut into runs that are longer than any block.
    """
    data, place = b"", source.position
    start, scanned = 0, 0
    while more := source.read(_READ_SIZE):
        data += more
        for position in find_bits(data[scanned:], BLOCK_MAGIC):
            bit = scanned * 8 + position
            if bit > start:
                yield _bits(data, start, bit, place)
            start = bit
        if len(data) - start // 8 > _MAX_RUN:
            yield _bits(data, start, len(data) * 8, place)
            start = len(data) * 8
        # A magic that is not whole yet is found next time.
        scanned = max(0, len(data) - _MAGIC_BYTES + 1)
        dropped = min(start // 8, scanned)
        data, place = data[dropped:], place + dropped
        start, scanned = start - dropped * 8, scanned - dropped
    yield _bits(data, start, len(data) * 8, place)


def _bits(data: bytes, start: int, end: int, place: int) -> Bits:
    first = start // 8
    return Bits(data[first : (end + 7) // 8], start % 8, end - start, place + first)
