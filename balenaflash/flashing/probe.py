"""How much a medium really holds, by marks written to it and read back.

Marks that tell their own address are written over the whole medium and read back.
"""

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from balenaflash.errors import InterruptedWriteError, VerificationError, WriteError
from balenaflash.progress import Phase, Progress, Stop, phase
from balenaflash.targets.medium import Medium
from balenaflash.units import MIB, SECTOR_SIZE, Extent, align_down

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
    end = align_down(size, MARK_SIZE)
    stretch = max(_SMALLEST_STRETCH, align_down(math.isqrt(size * _BALANCE), MIB))
    for start in range(0, min(stretch, end), _CHUNK):
        yield Extent(start, min(start + _CHUNK, stretch, end))
    last = end - MARK_SIZE
    for start in range(stretch, last, stretch):
        yield Extent(start, start + MARK_SIZE)
    if last >= stretch:
        yield Extent(last, end)


_FACTORS = (2, 3, 5, 7)
_LIKELY_FRACTIONS = (2, 4, 8, 16, 32, 64)
"""What counterfeits mostly are of the size that they tell."""


class Pattern(StrEnum):
    """What a medium does with what is written beyond its real size."""

    WRAPS = "wraps"
    """It lands at a lower address, and overwrites what is there."""

    ZEROS = "zeros"
    FAILS = "fails"
    """Writing or reading is an error."""

    OTHER = "other"
    """Something else is read."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What was found out about a medium."""

    claimed: int
    """Bytes that it says it has."""

    real: int | None
    """Bytes from its start that keep what is written; ``None``: places fail here and there."""

    pattern: Pattern | None = None
    """What happens beyond; ``None`` where it holds what it says."""

    failing: int = 0
    """Marks that did not read back."""

    @property
    def is_genuine(self) -> bool:
        """Whether it holds what it says."""
        return self.real == self.claimed


def probe(medium: Medium, progress: Progress, stop: Stop) -> ProbeReport:
    """Find out how many bytes ``medium`` holds. What was on it is lost.

    Raises:
        WriteError: it failed at its very start, or was unplugged.
        InterruptedWriteError: ``stop`` said so.
    """
    return _Prober(medium, progress, stop).probe()


def check_end(medium: Medium) -> None:
    """Return unless the last bytes of ``medium`` are lost or land elsewhere, as of most fakes.

    What was there is put back. Takes one write and a few reads.

    Raises:
        VerificationError: with code ``target-fake``: nothing else was written. With another
            code: its end cannot be read reliably, and nothing was written.
        WriteError: the medium failed there.
    """
    end = align_down(medium.size - MARK_SIZE, MARK_SIZE)
    if end <= 0:
        return
    marks, block = Marks(), Block(medium)
    # One bit wrong in one read would be written for good.
    before = medium.rereads.read_twice(lambda: bytes(block.read(end)))
    if before is None:
        raise VerificationError(
            f"{medium.name}: its end reads otherwise each time: it is failing. Nothing was written",
            hint="Try another port or reader, then another card or disk.",
        )
    block.write(end, marks.make(end))
    parts = [medium.size // part for part in _LIKELY_FRACTIONS]
    places = {align_down(end % part, MARK_SIZE) for part in parts if part > MARK_SIZE}
    is_lost = all(bytes(block.read(end)) != marks.make(end) for _ in range(2))
    is_elsewhere = any(list(marks.claims(block.read(place), place)) for place in places - {end})
    block.write(end, before)
    if is_lost or is_elsewhere:
        fact = "lands at another address" if is_elsewhere else "does not stay there"
        raise VerificationError(
            f"{medium.name}: what is written at its end {fact}: it is smaller than it says, a "
            "fake, or failing. Nothing else was written",
            code="target-fake",
            hint=f"Find its real size: balenaflash devices probe --destructive {medium.name}",
        )


@dataclass(slots=True)
class _Prober:
    medium: Medium
    progress: Progress
    stop: Stop
    _marks: Marks = field(default_factory=Marks)
    _distances: set[int] = field(default_factory=set)
    """Between where a mark was found and where it belongs."""

    _good: list[Extent] = field(default_factory=list)
    _bad: list[tuple[Extent, Pattern]] = field(default_factory=list)
    _fault: WriteError | None = None
    """The first one."""

    _block: Block = field(init=False)

    def __post_init__(self) -> None:
        self._block = Block(self.medium)

    def probe(self) -> ProbeReport:
        extents = list(layout(self.medium.size))
        total = sum(extent.size for extent in extents)
        with phase(self.progress, Phase.WRITE, total):
            written = self._write(extents)
        self.medium.begin_read_back()
        with phase(self.progress, Phase.VERIFY, total):
            for extent in written:
                self._look(extent)
        return self._conclude()

    def _write(self, extents: Sequence[Extent]) -> list[Extent]:
        """Write the marks in ascending order; those that could be written."""
        written: list[Extent] = []
        for extent in extents:
            self._stop_if_asked()
            try:
                self._block.put(extent.start, self._marks.make(extent.start, extent.size))
            except WriteError as error:
                self._fail(extent, error)
            else:
                written.append(extent)
            self.progress.advance(extent.size)
        return written

    def _look(self, extent: Extent) -> None:
        self._stop_if_asked()
        self.progress.advance(extent.size)
        try:
            found = self._block.read(extent.start, extent.size)
        except WriteError as error:
            self._fail(extent, error)
            return
        if found == self._marks.make(extent.start, extent.size):
            self._good.append(extent)
            return
        for start in range(0, extent.size, MARK_SIZE):
            self._judge(extent.start + start, found[start : start + MARK_SIZE])

    def _judge(self, offset: int, found: memoryview) -> None:
        """Note what was ``found`` in place of, or as, the mark at ``offset``."""
        extent = Extent(offset, offset + len(found))
        if found == self._marks.make(offset, len(found)):
            self._good.append(extent)
            return
        claims = self._marks.claims(found, offset)
        distances = {abs(place - home) for place, home in claims} - {0}
        self._distances |= distances
        pattern = Pattern.OTHER if any(found[-SECTOR_SIZE:]) else Pattern.ZEROS
        self._bad.append((extent, Pattern.WRAPS if distances else pattern))

    def _fail(self, extent: Extent, error: WriteError) -> None:
        """Note that the mark in ``extent`` cannot be written or read.

        Raises:
            WriteError: nor can the start of the medium be read: it is gone.
        """
        self._fault = self._fault or error
        self._block.read(0)
        self._bad.append((extent, Pattern.FAILS))

    def _conclude(self) -> ProbeReport:
        size = self.medium.size
        if self._distances:
            real = self._shorten(math.gcd(*self._distances))
            return ProbeReport(size, real, Pattern.WRAPS, len(self._bad))
        if not self._bad:
            return ProbeReport(size, size)
        border, pattern = min(self._bad, key=lambda each: each[0].start)
        good_behind = any(extent.start > border.start for extent in self._good)
        if good_behind:
            return ProbeReport(size, None, pattern, len(self._bad))
        last = max((extent.end for extent in self._good), default=0)
        real = self._find_border(last, border.end)
        if not real and self._fault is not None:
            raise self._fault
        return ProbeReport(size, real, pattern, len(self._bad))

    def _shorten(self, distance: int) -> int:
        """The shortest distance at which addresses are the same, of which this is a multiple."""
        for factor in _FACTORS:
            while distance % (factor * self.medium.alignment) == 0 and self._wraps_at(
                distance // factor
            ):
                distance //= factor
        return distance

    def _wraps_at(self, distance: int) -> bool:
        marks = Marks()
        self._block.write(distance, marks.make(distance))
        return any(home == place + distance for place, home in marks.claims(self._block.read(0), 0))

    def _find_border(self, low: int, high: int) -> int:
        """The end of what holds: all before ``low`` does, and not all before ``high``."""
        first, bad = low // MARK_SIZE, high // MARK_SIZE
        while first < bad:
            middle = (first + bad) // 2
            if self._holds(middle * MARK_SIZE):
                first = middle + 1
            else:
                bad = middle
        return first * MARK_SIZE

    def _holds(self, offset: int) -> bool:
        marks = Marks()
        try:
            self._block.write(offset, marks.make(offset))
            return self._block.read(offset) == marks.make(offset)
        except WriteError:
            self._block.read(0)
            return False

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise InterruptedWriteError(
                f"{self.medium.name}: probing was interrupted; what it held is partly overwritten",
                written=0,
            )
