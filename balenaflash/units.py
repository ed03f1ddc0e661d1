"""Byte ranges and their algebra, zeros, and sizes as people write them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

SECTOR_SIZE = 512
"""Bytes of a logical sector where nothing else is said."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_UNITS = "KMGTP"
_SIZE = re.compile(rf"([0-9]+)\s*(?:([{_UNITS}])(i?B)?|B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """The half-open byte range ``[start, end)`` of an image or a device."""

    start: int
    """Offset of the first byte, in bytes from the start of the whole."""

    end: int
    """Offset one past the last byte, in bytes."""

    @classmethod
    def from_lba(cls, first: int, last: int, *, sector_size: int = SECTOR_SIZE) -> Self:
        """Bytes of the sectors ``first`` to ``last``, both included.

        GPT stores the last LBA inclusive (UEFI 2.10, table 5.6), hence the one.
        """
        return cls(first * sector_size, (last + 1) * sector_size)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.end - self.start

    def contains(self, offset: int) -> bool:
        """True if the byte at ``offset`` lies inside."""
        return self.start <= offset < self.end

    def encloses(self, other: "Extent") -> bool:
        """True if every byte of ``other`` lies inside."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: "Extent") -> bool:
        """True if at least one byte lies in both."""
        return max(self.start, other.start) < min(self.end, other.end)

    def intersection(self, other: "Extent") -> "Extent | None":
        """The bytes that lie in both; ``None`` if there are none."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return Extent(start, end) if start < end else None

    def cut(self, size: int) -> Iterator["Extent"]:
        """The pieces of this range between the multiples of ``size``."""
        start = self.start
        while start < self.end:
            end = min((start // size + 1) * size, self.end)
            yield Extent(start, end)
            start = end

    def whole_blocks(self, size: int) -> "Extent":
        """The aligned blocks of ``size`` bytes that lie wholly inside; empty if there are none."""
        start = align_up(self.start, size)
        return Extent(start, max(start, align_down(self.end, size)))


def merge(extents: Iterable[Extent], *, gap: int = 0) -> Iterator[Extent]:
    """``extents`` in their order, each joined to the one before if they touch or overlap.

    Ranges with at most ``gap`` bytes between them are joined, too, and these bytes included.
    """
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
        elif last.start <= extent.start <= last.end + gap:
            last = Extent(last.start, max(last.end, extent.end))
        else:
            yield last
            last = extent
    if last is not None:
        yield last


def align_down(offset: int, unit: int) -> int:
    """``offset`` rounded down to a multiple of ``unit``."""
    return offset // unit * unit


def align_up(offset: int, unit: int) -> int:
    """``offset`` rounded up to a multiple of ``unit``."""
    return -(-offset // unit) * unit


_ZEROS = bytes(64 * KIB)


def is_zero(buffer: memoryview) -> bool:
    """True if ``buffer`` is all zeros.

    ``startswith`` compares with memcmp and without a copy. Measured on 4 MiB: 7 GB/s; a copy
    and ``==`` 2 to 6, ``rstrip`` 0.1, comparing memoryviews 0.1, a regular expression 0.1.
    """
    if len(buffer) <= len(_ZEROS):
        return _ZEROS.startswith(buffer)
    steps = range(0, len(buffer), len(_ZEROS))
    return all(_ZEROS.startswith(buffer[start : start + len(_ZEROS)]) for start in steps)


def format_size(size: int) -> str:
    """A size for people, in binary units, such as ``40.0 MiB``; bytes below one KiB."""
    if size < KIB:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= KIB
        if value < KIB:
            return f"{value:.1f} {unit}"
    return f"{value / KIB:.1f} TiB"


def parse_size(text: str) -> int:
    """The bytes in a size as people write it: ``500000000``, ``256G``, ``256 GiB``, ``256GB``.

    As in util-linux a letter alone is a binary unit and ``GB`` a decimal one.

    Raises:
        ValueError: it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 256G, 500GB or 8000000000")
    number, unit, ending = match.groups()
    base = 1000 if (ending or "").upper() == "B" else KIB
    power = 0 if unit is None else _UNITS.index(unit.upper()) + 1
    return int(number) * int(base**power)
