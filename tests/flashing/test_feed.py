"""One reader, several who take: each chunk once and in order, whoever is slow or goes away."""

import random
import threading
import time
from collections.abc import Callable

import pytest
from fakes import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.flashing.feed import ChunkQueue, Feed
from balenaflash.flashing.plan import CHUNK_SIZE, WritePlan
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.source.base import Source
from balenaflash.units import KIB, MIB

CHUNKS = 40
SIZE = CHUNKS * CHUNK_SIZE
NOISE = random.Random(7).randbytes(4096)  # noqa: S311 - no key


def never() -> bool:
    return False


class NumberedSource(MemorySource):
    """An image of which each 4 KiB hold their own number, made when they are read."""

    def __init__(self, size: int = SIZE) -> None:
        super().__init__(b"")
        self._end = size
        self.reads = 0
        self.can_fork = True

    @property
    def size(self) -> int:
        return self._end

    def fork(self) -> Source | None:
        return self if self.can_fork else None

    def read(self, offset: int, length: int) -> bytes:
        return (offset // 4096 + 1).to_bytes(8, "big").ljust(length, b"\1")

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self.reads += 1
        for start in range(0, len(buffer), 512 * KIB):
            buffer[start : start + 16] = self.read(offset + start, 16)


def make_plan(size: int = SIZE) -> WritePlan:
    return WritePlan(size, PartitionTable(TableKind.MSDOS, 512, "0x0", (), ()))


class Taking(threading.Thread):
    """Takes each chunk, after a pause, and notes what it held when it was given back."""

    def __init__(
        self, queue: ChunkQueue, pause: Callable[[], float], *, leaves_at: int = 1000
    ) -> None:
        super().__init__(daemon=True)
        self.queue = queue
        self.seen: list[tuple[int, int]] = []
        self.failure: BaseException | None = None
        self.is_whole = False
        self.ended = 0.0
        self._pause = pause
        self._leaves_at = leaves_at

    def run(self) -> None:
        try:
            for chunk, release in self.queue.chunks(never):
                assert chunk is not None
                time.sleep(self._pause())
                assert chunk.fault is None
                number = int.from_bytes(chunk.buffer[:8], "big")
                assert number == chunk.digest.extent.start // 4096 + 1, "overwritten in hand"
                self.seen.append((chunk.digest.extent.start, chunk.digest.extent.end))
                release()
                if len(self.seen) == self._leaves_at:
                    self.queue.close()
                    return
            self.is_whole = True
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failure = error
        finally:
            self.ended = time.monotonic()


def take_all(source: Source, pauses: list[Callable[[], float]], **leaves: int) -> list[Taking]:
    with Feed(source, make_plan(source.size or 0), len(pauses), limit=None) as feed:
        takers = [Taking(queue, pause) for queue, pause in zip(feed.queues, pauses, strict=True)]
        for index, at in leaves.items():
            takers[int(index[1:])]._leaves_at = at
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join(60)
            assert not taker.is_alive()
    return takers


def assert_whole(taker: Taking, size: int = SIZE) -> None:
    """Each byte once, the first MiB last."""
    assert taker.failure is None
    assert taker.is_whole
    assert taker.seen[-1] == (0, MIB)
    position = MIB
    for start, end in taker.seen[:-1]:
        assert start == position
        position = end
    assert position == size


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_everybody_gets_each_chunk_once_and_in_order(seed: int, count: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no key
    for taker in take_all(NumberedSource(), [lambda: chance.random() / 200] * count):
        assert_whole(taker)


def test_a_slow_one_is_let_go_and_ends_by_itself() -> None:
    started = time.monotonic()
    fast, other, slow = take_all(NumberedSource(), [lambda: 0.002, lambda: 0.002, lambda: 0.06])
    for taker in (fast, other, slow):
        assert_whole(taker)
    took = slow.ended - started
    assert max(fast.ended, other.ended) - started < took * 0.7


def test_an_image_that_can_be_read_once_goes_at_the_pace_of_the_slowest() -> None:
    source = NumberedSource()
    source.can_fork = False
    takers = take_all(source, [lambda: 0.0, lambda: 0.02])
    for taker in takers:
        assert_whole(taker)
    assert source.reads == CHUNKS + 2, "each chunk, the head, and the step to the end, once"


def test_one_who_goes_away_holds_up_nobody_and_keeps_no_buffer() -> None:
    pauses: list[Callable[[], float]] = [lambda: 0.0] * 13
    takers = take_all(NumberedSource(), pauses, **{f"t{index}": index for index in range(1, 13)})
    assert_whole(takers[0])


class Failing(NumberedSource):
    def __init__(self, error: Exception, at: int) -> None:
        super().__init__()
        self._error, self._at = error, at

    def readinto(self, offset: int, buffer: memoryview) -> None:
        if offset >= self._at:
            raise self._error
        super().readinto(offset, buffer)


def test_a_reader_that_crashes_never_looks_like_the_end() -> None:
    ended: list[Taking] = []

    def feed() -> None:
        source = Failing(OSError("a bug"), 10 * CHUNK_SIZE)
        with Feed(source, make_plan(), 1, limit=None) as feed:
            taker = Taking(feed.queues[0], lambda: 0.0)
            ended.append(taker)
            taker.start()
            taker.join(30)

    with pytest.raises(OSError, match="a bug"):
        feed()
    (taker,) = ended
    assert not taker.is_whole
    assert isinstance(taker.failure, ImageError)


def test_a_damaged_image_is_told_to_everybody_by_a_chunk() -> None:
    source = Failing(ImageError("damaged"), 10 * CHUNK_SIZE)
    with Feed(source, make_plan(), 2, limit=None) as feed:
        chunks = [queue.chunks(never) for queue in feed.queues]
        faults: list[ImageError | None] = [None, None]
        for _ in range(12):
            for index, taken in enumerate(chunks):
                if faults[index] is None:
                    chunk, release = next(taken)
                    assert chunk is not None
                    release()
                    faults[index] = chunk.fault
        assert [str(fault) for fault in faults] == ["damaged", "damaged"]
        with pytest.raises(ImageError, match="broke off"):
            next(chunks[0])


def test_a_reader_that_stands_still_keeps_nobody_from_leaving() -> None:
    still = threading.Event()

    class Standing(NumberedSource):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            still.wait(30)
            super().readinto(offset, buffer)

    started = time.monotonic()
    try:
        with Feed(Standing(), make_plan(), 1, limit=None) as feed:
            assert next(feed.queues[0].chunks(lambda: True))[0] is None
        assert time.monotonic() - started < 10
    finally:
        still.set()


def test_a_queue_refuses_chunks_in_another_order() -> None:
    with Feed(NumberedSource(), make_plan(), 1, limit=None) as feed:
        (queue,) = feed.queues
        chunk, release = next(queue.chunks(never))
        assert chunk is not None
        with pytest.raises(ValueError, match="comes instead of"):
            queue.offer(chunk, release)
        release()
