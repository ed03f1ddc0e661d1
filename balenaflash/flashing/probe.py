"""Probe how many bytes a medium really holds.

Marks that contain their own address are written all over the medium and read back.
"""

import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
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
"""Bytes that a slow card writes in a row while it writes one mark elsewhere: 20 MB/s, 5 ms."""

_FACTORS = (2, 3, 5, 7)
_LIKELY_FRACTIONS = (2, 4, 8, 16, 32, 64)
"""The size that fakes claim, as a multiple of the size that most of them have."""


class Pattern(StrEnum):
    """Behaviour of a medium when bytes are written beyond its real size."""

    WRAPS = "wraps"
    """They are stored at a lower address, and overwrite what is there."""

    ZEROS = "zeros"
    FAILS = "fails"
    """Writing or reading is an error."""

    OTHER = "other"
    """Something else is read."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """The real size of a medium."""

    claimed: int
    """Bytes that the medium claims to have."""

    real: int | None
    """Bytes from its start that keep what is written; ``None`` if it fails here and there."""

    pattern: Pattern | None = None
    """Pattern beyond the real size; ``None`` if the medium holds what it claims."""

    failing: int = 0
    """Marks that did not read back."""

    @property
    def is_genuine(self) -> bool:
        """True if the medium holds what it claims."""
        return self.real == self.claimed


def probe(medium: Medium, progress: Progress, stop: Stop) -> ProbeReport:
    """Find out how many bytes ``medium`` holds. Its content is lost.

    Raises:
        WriteError: the medium failed at its very start, or was unplugged.
        InterruptedWriteError: ``stop`` returned true.
    """
    return _Prober(medium, progress, stop).probe()


def check_end(medium: Medium) -> None:
    """Return unless the last bytes of ``medium`` are lost or stored elsewhere, as on most fakes.

    Its content is restored. This takes one write and a few reads.

    Raises:
        VerificationError: with code ``target-fake``: nothing else was written. With another
            code: its end cannot be read reliably, and nothing was written.
        WriteError: the medium failed there.
    """
    end = align_down(medium.size - MARK_SIZE, MARK_SIZE)
    if end <= 0:
        return
    marks, block = _Marks(), _Block(medium)
    # A wrong bit in a single read would be written for good.
    before = medium.rereads.read_twice(lambda: bytes(block.read(end)))
    if before is None:
        raise VerificationError(
            f"{medium.name}: its end reads differently each time: it is failing. Nothing was "
            "written",
            hint="Try another port or reader, then another card or disk.",
        )
    block.write(end, marks.make(end))
    parts = [medium.size // part for part in _LIKELY_FRACTIONS]
    places = {align_down(end % part, MARK_SIZE) for part in parts if part > MARK_SIZE}
    is_lost = all(bytes(block.read(end)) != marks.make(end) for _ in range(2))
    is_elsewhere = any(list(marks.claims(block.read(place), place)) for place in places - {end})
    block.write(end, before)
    if is_lost or is_elsewhere:
        fact = "is stored at another address" if is_elsewhere else "does not stay there"
        raise VerificationError(
            f"{medium.name}: what is written at its end {fact}: it is smaller than it claims, a "
            "fake, or failing. Nothing else was written",
            code="target-fake",
            hint=f"Find its real size: balenaflash devices probe --destructive {medium.name}",
        )


class _Marks:
    """Blocks in which every sector contains its address and a nonce of the probe."""

    def __init__(self) -> None:
        self._nonce = os.urandom(_NONCE_SIZE)
        self._fill = os.urandom(SECTOR_SIZE - _HEADER_SIZE)

    def make(self, offset: int, length: int = MARK_SIZE) -> bytes:
        """The marks from ``offset`` on."""
        return b"".join(
            self._nonce + place.to_bytes(8, "little") + self._fill
            for place in range(offset, offset + length, SECTOR_SIZE)
        )

    def claims(self, found: memoryview, offset: int) -> Iterator[tuple[int, int]]:
        """Each marked sector in ``found``, read at ``offset``: its address and the one it names."""
        for start in range(0, len(found), SECTOR_SIZE):
            header = bytes(found[start : start + _HEADER_SIZE])
            if header.startswith(self._nonce):
                yield offset + start, int.from_bytes(header[_NONCE_SIZE:], "little")


class _Block:
    """A buffer to write and read a medium with, past every cache."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._buffer = memoryview(mmap.mmap(-1, _CHUNK))

    def put(self, offset: int, content: bytes) -> None:
        """Write ``content``, perhaps to a cache only."""
        self._buffer[: len(content)] = content
        self._medium.write(offset, self._buffer[: len(content)])

    def write(self, offset: int, content: bytes) -> None:
        """Write ``content`` to the medium itself."""
        self.put(offset, content)
        self._medium.begin_read_back()

    def read(self, offset: int, length: int = MARK_SIZE) -> memoryview:
        """The content at ``offset``, valid until the next read or write."""
        self._medium.readinto(offset, self._buffer[:length])
        return self._buffer[:length]


def _mark_places(size: int) -> Iterator[Extent]:
    """The ranges to mark on a medium of ``size`` bytes, ascending.

    The first stretch is marked without a gap. It is as long as the distance between the marks
    after it. So, whatever the real size is, one of these lands in it if addresses wrap around.
    """
    end = align_down(size, MARK_SIZE)
    stretch = max(_SMALLEST_STRETCH, align_down(math.isqrt(size * _BALANCE), MIB))
    yield from Extent(0, min(stretch, end)).cut(_CHUNK)
    last = end - MARK_SIZE
    for start in range(stretch, last, stretch):
        yield Extent(start, start + MARK_SIZE)
    if last >= stretch:
        yield Extent(last, end)


class _Prober:
    def __init__(self, medium: Medium, progress: Progress, stop: Stop) -> None:
        self._medium = medium
        self._progress = progress
        self._stop = stop
        self._block = _Block(medium)
        self._marks = _Marks()
        self._distances = set[int]()
        """Distances between the address where a mark was found and the one it names."""

        self._good: list[Extent] = []
        self._bad: list[tuple[Extent, Pattern]] = []
        self._fault: WriteError | None = None
        """The first one."""

    def probe(self) -> ProbeReport:
        places = list(_mark_places(self._medium.size))
        total = sum(extent.size for extent in places)
        with phase(self._progress, Phase.WRITE, total):
            written = [extent for extent in places if self._write(extent)]
        self._medium.begin_read_back()
        with phase(self._progress, Phase.VERIFY, total):
            for extent in written:
                self._read(extent)
        return self._conclude()

    def _write(self, extent: Extent) -> bool:
        """Write the marks in ``extent``; False if that fails."""
        self._stop_if_asked()
        try:
            self._block.put(extent.start, self._marks.make(extent.start, extent.size))
        except WriteError as error:
            self._note_failure(extent, error)
            return False
        finally:
            self._progress.advance(extent.size)
        return True

    def _read(self, extent: Extent) -> None:
        """Read the marks in ``extent``, and note for each what is found in its place."""
        self._stop_if_asked()
        self._progress.advance(extent.size)
        try:
            found = self._block.read(extent.start, extent.size)
        except WriteError as error:
            self._note_failure(extent, error)
            return
        if found == self._marks.make(extent.start, extent.size):
            self._good.append(extent)
            return
        for mark in extent.cut(MARK_SIZE):
            sectors = found[mark.start - extent.start : mark.end - extent.start]
            if sectors == self._marks.make(mark.start):
                self._good.append(mark)
                continue
            claims = self._marks.claims(sectors, mark.start)
            distances = {abs(place - home) for place, home in claims} - {0}
            self._distances |= distances
            pattern = Pattern.OTHER if any(sectors[-SECTOR_SIZE:]) else Pattern.ZEROS
            self._bad.append((mark, Pattern.WRAPS if distances else pattern))

    def _note_failure(self, extent: Extent, error: WriteError) -> None:
        """Note that the marks in ``extent`` cannot be written or read.

        Raises:
            WriteError: the start of the medium cannot be read either: it is gone.
        """
        self._fault = self._fault or error
        self._block.read(0)
        self._bad.append((extent, Pattern.FAILS))

    def _conclude(self) -> ProbeReport:
        size = self._medium.size
        if self._distances:
            real = self._shorten(math.gcd(*self._distances))
            return ProbeReport(size, real, Pattern.WRAPS, len(self._bad))
        if not self._bad:
            return ProbeReport(size, size)
        border, pattern = min(self._bad, key=lambda each: each[0].start)
        if any(extent.start > border.start for extent in self._good):
            return ProbeReport(size, None, pattern, len(self._bad))
        last = max((extent.end for extent in self._good), default=0)
        real = self._find_border(last, border.end)
        if not real and self._fault is not None:
            raise self._fault
        return ProbeReport(size, real, pattern, len(self._bad))

    def _shorten(self, distance: int) -> int:
        """The shortest distance at which addresses are the same; ``distance`` is a multiple."""
        for factor in _FACTORS:
            while distance % (factor * self._medium.alignment) == 0 and self._wraps_at(
                distance // factor
            ):
                distance //= factor
        return distance

    def _wraps_at(self, distance: int) -> bool:
        marks = _Marks()
        self._block.write(distance, marks.make(distance))
        return any(home == place + distance for place, home in marks.claims(self._block.read(0), 0))

    def _find_border(self, low: int, high: int) -> int:
        """The real size: at least ``low``, and less than ``high``."""
        first, bad = low // MARK_SIZE, high // MARK_SIZE
        while first < bad:
            middle = (first + bad) // 2
            if self._holds(middle * MARK_SIZE):
                first = middle + 1
            else:
                bad = middle
        return first * MARK_SIZE

    def _holds(self, offset: int) -> bool:
        marks = _Marks()
        try:
            self._block.write(offset, marks.make(offset))
            return self._block.read(offset) == marks.make(offset)
        except WriteError:
            self._block.read(0)
            return False

    def _stop_if_asked(self) -> None:
        if self._stop():
            raise InterruptedWriteError(
                f"{self._medium.name}: probing was interrupted; its content is partly overwritten"
            )
