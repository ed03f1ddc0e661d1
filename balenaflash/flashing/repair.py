"""Repair chunks that read back wrong: read them again, write them again, or say why they fail."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from balenaflash.errors import ImageError, VerificationError
from balenaflash.flashing.plan import CHUNK_SIZE, ChunkDigest, WritePlan, holds, read_pieces
from balenaflash.flashing.read_back import (
    MOST_DIFFERENCES,
    Difference,
    differs,
    find_differences,
    stop_if_asked,
)
from balenaflash.flashing.writer import Written
from balenaflash.formats.contents import BLOCK_SIZE
from balenaflash.progress import Stop
from balenaflash.source.base import Source
from balenaflash.source.layers import lay_over
from balenaflash.targets.medium import Medium
from balenaflash.units import Extent, align_up

_ATTEMPTS = 3
"""Chunks that stay wrong after being written again: then the medium is given up."""

_SAMPLE = BLOCK_SIZE
"""Bytes that are looked for at other addresses: too many to be the same by chance."""

_SEARCHES = 3
"""Times the medium is searched for a sample; each takes as long as reading it back."""

_VARIETY = 16
"""Different bytes that a sample must have: fill patterns are the same in many places."""

_FAKE = (
    "what is read there was written to another address: the medium is smaller than it claims, a "
    "fake"
)
_ENDS = (
    "from there on it reads zeros whatever is written: the medium is smaller than it claims, a "
    "fake, or failing"
)
_CHANGED = (
    "it was right until other ranges were written again: the medium is smaller than it claims, a "
    "fake, or failing"
)
_IGNORES = "it reads the same whatever is written: the medium does not accept it"


@dataclass(frozen=True, slots=True)
class Repair:
    """Chunks that read back wrong at first, and right now."""

    repaired: tuple[Difference, ...] = ()
    """Ranges that were written again and then read back right."""

    unsteady: int = 0
    """Chunks that read wrong once and right the second time."""


class Repairer:
    """The repair of one medium."""

    def __init__(
        self, source: Source | None, medium: Medium, plan: WritePlan, written: Written, stop: Stop
    ) -> None:
        """``source`` is the image, to be read again; ``None`` if it can be read only once."""
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

    def repair(
        self, differing: Iterable[ChunkDigest], read_back: Callable[[], Sequence[ChunkDigest]]
    ) -> Repair:
        """Read each of ``differing`` a second time, write what is wrong once more, and read that.

        ``read_back`` reads all that was written, and returns what differs.

        Raises:
            VerificationError: a range stays wrong, or the medium returns what belongs elsewhere.
            WriteError: the medium failed.
            InterruptedWriteError: ``stop`` returned true.
        """
        # Ascending, so that a stream need not keep what it decodes on the way.
        ordered = sorted(differing, key=lambda digest: digest.extent)
        with nullcontext() if self._source is None else self._source.sequential():
            unsteady = self._repair_all(ordered)
        if self._repaired:
            # A fake medium writes elsewhere what is written to it, so all is read once more.
            again = read_back()
            changed = [each for each in again if not holds(self._medium, each, self._found)]
            if changed:
                raise self._failure(_CHANGED, _whole(*changed))
            unsteady += len(again)
        return Repair(tuple(self._repaired), unsteady)

    def _repair_all(self, ordered: Sequence[ChunkDigest]) -> int:
        """Repair the chunks; the number of those that read right the second time."""
        unsteady = done = 0
        for digest in ordered:
            stop_if_asked(self._stop, self._medium, done)
            done += digest.size
            if holds(self._medium, digest, self._found):
                unsteady += 1
                continue
            self._mend(digest)
            if self._lasting_chunks >= _ATTEMPTS:
                break
        if self._lasting:
            raise self._failure(self._find_pattern(ordered))
        return unsteady

    def _mend(self, digest: ChunkDigest) -> None:
        """Write the chunk again, and read whether that helped."""
        if self._source is None:
            same = self._find_same(digest, [piece.extent for piece in digest.pieces])
            once = "the image can be read only once, so it is not written again"
            raise self._failure(once if same is None else _FAKE, _whole(digest))
        before = digest.hash(self._found)
        differences = self._compare(digest, self._source)
        same = self._find_same(digest, [each.extent for each in differences])
        same_before = b"" if same is None else self._read_hash(same)
        self._write_again(digest)
        if same is not None and self._read_hash(same) != same_before:
            # Writing here has changed it there.
            raise self._failure(_FAKE, differences)
        if holds(self._medium, digest, self._found):
            self._repaired += differences
            return
        self._lasting_chunks += 1
        self._ignored_writes += digest.hash(self._found) == before
        self._lasting += find_differences(digest, self._wanted, self._found)

    def _compare(self, digest: ChunkDigest, source: Source) -> tuple[Difference, ...]:
        """Read the chunk from the image to ``_wanted``; where ``_found`` differs from it."""
        extent = digest.extent
        of_image = max(0, min(extent.end, self._written.image_size) - extent.start)
        try:
            if of_image:
                source.readinto(extent.start, self._wanted[:of_image])
        except ImageError as error:
            fact = f"the image cannot be read again: {error}"
            raise self._failure(fact, _whole(digest)) from error
        end = align_up(extent.size, BLOCK_SIZE)
        self._wanted[of_image:end] = bytes(end - of_image)
        lay_over(self._written.patches, extent.start, self._wanted[: extent.size])
        if digest.hash(self._wanted) != digest.xxh3:
            raise self._failure("the image has changed since it was written", _whole(digest))
        return find_differences(digest, self._wanted, self._found)

    def _write_again(self, digest: ChunkDigest) -> None:
        for piece in digest.pieces:
            start = piece.extent.start - digest.extent.start
            length = align_up(piece.extent.size, self._medium.alignment)
            self._medium.write(piece.extent.start, self._wanted[start : start + length])
        self._medium.begin_read_back()

    def _find_same(self, digest: ChunkDigest, wrong: Iterable[Extent]) -> ChunkDigest | None:
        """Another chunk that reads what ``digest`` reads where it is ``wrong``.

        On a fake medium several addresses are the same place, which holds what was written last.
        """
        sample = self._sample(digest, wrong) if self._searches < _SEARCHES else None
        if sample is None:
            return None
        self._searches += 1
        others = (each for each in self._with_data() if each is not digest)
        return next((each for each in others if self._contains(each, sample)), None)

    def _contains(self, digest: ChunkDigest, sample: bytes) -> bool:
        """True if the medium reads ``sample`` somewhere in the pieces of ``digest``."""
        read_pieces(self._medium, digest, self._other)
        base = digest.extent.start
        parts = [
            slice(piece.extent.start - base, piece.extent.end - base) for piece in digest.pieces
        ]
        return any(sample in bytes(self._other[part]) for part in parts)

    def _with_data(self) -> Iterator[ChunkDigest]:
        """The chunks that hold more than zeros."""
        for digest in (*self._written.digests, *self._written.past, *self._written.equal):
            if not all(piece.is_zero for piece in digest.pieces):
                yield digest

    def _sample(self, digest: ChunkDigest, wrong: Iterable[Extent]) -> bytes | None:
        """The 4 KiB with the most different bytes among those that are wholly ``wrong``.

        ``None`` if fewer are wrong, as after a flipped bit: those come from nowhere else.
        """
        base = digest.extent.start
        samples = [
            bytes(self._found[start - base : start - base + _SAMPLE])
            for extent in wrong
            for start in range(extent.start, extent.end - _SAMPLE + 1, _SAMPLE)
        ]
        variety, best = max(((len(set(each)), each) for each in samples), default=(0, b""))
        return best if variety >= _VARIETY else None

    def _read_hash(self, digest: ChunkDigest) -> bytes:
        read_pieces(self._medium, digest, self._other)
        return digest.hash(self._other)

    def _find_pattern(self, differing: Sequence[ChunkDigest]) -> str | None:
        """The behaviour of the medium that explains everything that stays wrong, if any does."""
        if not self._lasting_chunks or self._ignored_writes < self._lasting_chunks:
            return None
        first = min(each.extent.start for each in self._lasting)
        after = {each.extent.start for each in self._with_data() if each.extent.start >= first}
        reads_zeros = all(each.reads_zeros for each in self._lasting)
        if reads_zeros and after <= {each.extent.start for each in differing}:
            return _ENDS
        return _IGNORES

    def _failure(
        self, pattern: str | None, differences: Sequence[Difference] = ()
    ) -> VerificationError:
        """The error that names all that stays wrong, ``differences`` included."""
        lasting = sorted((*self._lasting, *differences))
        return differs(
            self._source,
            self._plan,
            self._medium.name,
            lasting[:MOST_DIFFERENCES],
            len(lasting),
            pattern=pattern,
        )


def _whole(*digests: ChunkDigest) -> list[Difference]:
    """All pieces of ``digests``, if it is not known which of their bytes differ."""
    return [
        Difference(piece.extent, piece.extent.start, reads_zeros=False)
        for digest in digests
        for piece in digest.pieces
    ]
