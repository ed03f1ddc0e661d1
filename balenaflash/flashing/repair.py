"""What to do about ranges that read back otherwise than they were written."""

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from balenaflash.errors import ImageError, VerificationError
from balenaflash.flashing.chunks import CHUNK_SIZE, ChunkRecord
from balenaflash.flashing.plan import WritePlan
from balenaflash.flashing.read_back import (
    Difference,
    differs,
    digest_in,
    find_differences,
    reads_right,
    stop_if_asked,
)
from balenaflash.flashing.writer import Written, read_spans
from balenaflash.formats.contents import BLOCK_SIZE
from balenaflash.progress import Stop
from balenaflash.source.base import Source
from balenaflash.source.layers import lay_over
from balenaflash.targets.medium import Medium
from balenaflash.units import Extent, align_up

_ATTEMPTS = 3
"""Chunks that stay wrong after being written again: then the medium is given up."""

_NAMED = 1000
"""Differences told one by one."""


_SAMPLE = BLOCK_SIZE
"""Bytes that are looked for at other addresses: more than chance would put there."""

_SEARCHES = 3
"""How often the medium is searched for a sample, which takes as long as reading it back."""

_TELLING = 16
"""Different bytes that a sample must have: fill patterns are the same in many places."""

_FAKE = (
    "what is read there was written to another address: the medium is smaller than it says, a fake"
)
_ENDS = (
    "from there on it reads zeros whatever is written: the medium is smaller than it says, a fake, "
    "or failing"
)


@dataclass(frozen=True, slots=True)
class Repair:
    """What was found wrong and is right now."""

    repaired: tuple[Difference, ...]
    """Ranges that were written again and then read back right."""

    unsteady: int
    """Chunks that read wrong once and right the second time."""


NO_REPAIR = Repair((), 0)


def repair(
    source: Source | None,
    medium: Medium,
    plan: WritePlan,
    written: Written,
    differing: Sequence[ChunkRecord],
    stop: Stop,
) -> Repair:
    """Read each of ``differing`` a second time, write what is wrong once more, and read that.

    ``source`` is the image, to be read again; ``None`` where it can be read only once.

    Raises:
        VerificationError: a range stays wrong, or the medium gives what belongs elsewhere.
        WriteError: the medium failed.
        InterruptedWriteError: ``stop`` said so.
    """
    repairer = _Repairer(source, medium, plan, written, stop)
    if source is None:
        return repairer.repair(differing)
    # Ascending, so that a stream need not keep what it decodes on the way.
    with source.sequential():
        return repairer.repair(differing)


def find_lasting(medium: Medium, differing: Iterable[ChunkRecord]) -> list[ChunkRecord]:
    """Those of ``differing`` that read wrong a second time, too.

    Raises:
        WriteError: the medium cannot be read.
    """
    buffer = memoryview(mmap.mmap(-1, CHUNK_SIZE))
    return [record for record in differing if not reads_right(medium, record, buffer)]


def changed_by_repair(
    source: Source | None,
    medium: Medium,
    plan: WritePlan,
    written: Written,
    changed: Sequence[ChunkRecord],
) -> VerificationError:
    """The error for chunks that held what they should until others were written again."""
    places = sorted(whole_differences(changed))
    pattern = (
        "it was right until other ranges were written again: the medium is smaller than it says, "
        "a fake, or failing"
    )
    return differs(
        source, plan, medium.name, places, len(places), written=written.size, pattern=pattern
    )


def whole_differences(records: Iterable[ChunkRecord]) -> list[Difference]:
    """Whatever ``records`` speak of, where nobody knows which bytes of it differ."""
    return [
        Difference(piece.extent, piece.extent.start, reads_zeros=False)
        for record in records
        for piece in record.pieces
    ]


class _Repairer:
    def __init__(
        self, source: Source | None, medium: Medium, plan: WritePlan, written: Written, stop: Stop
    ) -> None:
        self._source = source
        self._medium = medium
        self._plan = plan
        self._written = written
        self._stop = stop
        self._wanted = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        self._found = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        self._other = memoryview(mmap.mmap(-1, CHUNK_SIZE))
        self._repaired: list[Difference] = []
        self._lasting: list[Difference] = []
        self._lasting_chunks = 0
        self._ignored_writes = 0
        self._searches = 0

    def repair(self, differing: Sequence[ChunkRecord]) -> Repair:
        unsteady = done = 0
        ordered = sorted(differing, key=_start)
        for record in ordered:
            stop_if_asked(self._stop, self._medium, done, written=self._written.size)
            done += record.size
            if reads_right(self._medium, record, self._found):
                unsteady += 1
                continue
            self._mend(record)
            if self._lasting_chunks >= _ATTEMPTS:
                break
        if self._lasting:
            raise self._given_up(self._pattern(ordered))
        return Repair(tuple(self._repaired), unsteady)

    def _mend(self, record: ChunkRecord) -> None:
        """Write the chunk again, and see whether that helped."""
        if self._source is None:
            self._lasting += whole_differences([record])
            same = self._find_same(record, [piece.extent for piece in record.pieces])
            once = "the image can be read only once, so it is not written again"
            raise self._given_up(once if same is None else _FAKE)
        before = digest_in(record, self._found)
        differences = self._find(record, self._source)
        same = self._find_same(record, [each.extent for each in differences])
        same_before = b"" if same is None else self._read_digest(same)
        self._write_again(record)
        if same is not None and self._read_digest(same) != same_before:
            # Writing here has changed it there.
            self._lasting += differences
            raise self._given_up(_FAKE)
        if reads_right(self._medium, record, self._found):
            self._repaired += differences
            return
        self._lasting_chunks += 1
        self._ignored_writes += digest_in(record, self._found) == before
        self._lasting += find_differences(record, self._wanted, self._found)

    def _write_again(self, record: ChunkRecord) -> None:
        for piece in record.pieces:
            start = piece.extent.start - record.extent.start
            length = align_up(piece.extent.size, self._medium.alignment)
            self._medium.write(piece.extent.start, self._wanted[start : start + length])
        self._medium.begin_read_back()

    def _find(self, record: ChunkRecord, source: Source) -> tuple[Difference, ...]:
        """Where ``_found`` is not what is wanted, which is put into ``_wanted``."""
        extent = record.extent
        of_image = max(0, min(extent.end, self._written.image_size) - extent.start)
        try:
            if of_image:
                source.readinto(extent.start, self._wanted[:of_image])
        except ImageError as error:
            self._lasting += whole_differences([record])
            raise self._given_up(f"the image cannot be read again: {error}") from error
        end = align_up(extent.size, BLOCK_SIZE)
        self._wanted[of_image:end] = bytes(end - of_image)
        lay_over(self._written.patches, extent.start, self._wanted[: extent.size])
        if digest_in(record, self._wanted) != record.digest:
            self._lasting += whole_differences([record])
            raise self._given_up("the image has changed since it was written")
        return find_differences(record, self._wanted, self._found)

    def _find_same(self, record: ChunkRecord, wrong: Iterable[Extent]) -> ChunkRecord | None:
        """Another chunk that reads what ``record`` does where it is ``wrong``, if any.

        A counterfeit keeps what was written last of all addresses that are one to it.
        """
        sample = self._sample(record, wrong) if self._searches < _SEARCHES else None
        if sample is None:
            return None
        self._searches += 1
        return next((each for each in self._others(record) if self._has(each, sample)), None)

    def _others(self, record: ChunkRecord | None = None) -> Iterator[ChunkRecord]:
        """Chunks that hold more than zeros, without ``record``."""
        for other in (*self._written.records, *self._written.past, *self._written.equal):
            if other is not record and not all(piece.is_zero for piece in other.pieces):
                yield other

    def _sample(self, record: ChunkRecord, wrong: Iterable[Extent]) -> bytes | None:
        """4 KiB in a row that are ``wrong``, those with the most different bytes.

        ``None`` where fewer are, as by a bit that flipped: such come from nowhere else.
        """
        base = record.extent.start
        samples = [
            bytes(self._found[start - base : start - base + _SAMPLE])
            for extent in wrong
            for start in range(extent.start, extent.end - _SAMPLE + 1, _SAMPLE)
        ]
        best = max(samples, key=_variety, default=b"")
        return best if _variety(best) >= _TELLING else None

    def _has(self, record: ChunkRecord, sample: bytes) -> bool:
        """Whether the medium reads ``sample`` somewhere in ``record``."""
        read_spans(self._medium, record, self._other)
        base = record.extent.start
        return any(
            bytes(self._other[piece.extent.start - base : piece.extent.end - base]).find(sample)
            >= 0
            for piece in record.pieces
        )

    def _read_digest(self, record: ChunkRecord) -> bytes:
        read_spans(self._medium, record, self._other)
        return digest_in(record, self._other)

    def _pattern(self, ordered: Sequence[ChunkRecord]) -> str | None:
        if not self._lasting_chunks or self._ignored_writes < self._lasting_chunks:
            return None
        first = min(each.extent.start for each in self._lasting)
        behind = [each for each in self._others() if each.extent.start >= first]
        reads_zeros = all(each.reads_zeros for each in self._lasting)
        if reads_zeros and {each.extent.start for each in behind} <= set(map(_start, ordered)):
            return _ENDS
        return "it reads the same whatever is written: the medium does not take it"

    def _given_up(self, pattern: str | None) -> VerificationError:
        return differs(
            self._source,
            self._plan,
            self._medium.name,
            sorted(self._lasting)[:_NAMED],
            len(self._lasting),
            written=self._written.size,
            pattern=pattern,
        )


def _variety(sample: bytes) -> int:
    return len(set(sample))


def _start(record: ChunkRecord) -> int:
    return record.extent.start
