"""Read an image once, and hand its chunks to the queue of each target.

One thread reads and decodes, one finds what each chunk holds; a number of buffers bounds the
memory. Whoever takes chunks does so at a pace of its own: when all buffers wait for the slowest
while another has nothing to do, the slowest is let go and reads the image for itself.
"""

import mmap
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

from balenaflash.errors import ImageError
from balenaflash.flashing.chunks import CHUNK_SIZE, Chunk, ChunkRecord, make_record
from balenaflash.flashing.plan import WritePlan
from balenaflash.formats.contents import BLOCK_SIZE, FreeCursor, classify
from balenaflash.progress import Stop
from balenaflash.source.base import Source
from balenaflash.units import Extent, align_up

_AHEAD = 10
"""Chunks that were read and not handed out yet, at most."""

_PATIENCE = 0.05
"""Seconds without a free buffer until it is asked who holds them."""


class Taker(Protocol):
    """Somebody who takes the chunks of an image in their order."""

    def offer(self, chunk: Chunk, release: Callable[[], None]) -> bool:
        """Put ``chunk``, the one after the last, at the end; False if it wants no more.

        ``release`` is called once when its buffer is not needed any more.
        """

    def finish(self, *, complete: bool) -> None:
        """No more chunks come: all were offered, or, if not ``complete``, reading broke off."""

    @property
    def waiting(self) -> int:
        """Chunks that it has not taken yet, and the ones in its hands."""

    def let_go(self) -> None:
        """Drop the chunks not taken yet, and go on alone from the first of them."""


@dataclass(slots=True)
class _Slot:
    """A buffer and how many still need it."""

    memory: mmap.mmap
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    extent: Extent
    slot: _Slot | None
    free: list[Extent]
    fault: ImageError | None


@dataclass(slots=True)
class Feed:
    """The chunks of ``source`` at the extents that ``extents`` gives, in that order."""

    source: Source
    extents: Iterator[Extent]
    """Each at most ``CHUNK_SIZE`` long and starting at a multiple of 4 KiB."""

    open_cursor: Callable[[], FreeCursor | None]
    """Gives what is free; ``None`` where all is to be written."""

    takers: list[Taker]
    buffers: int
    """Chunks in memory at a time."""

    first: int = 0
    """Number of the chunk to begin with."""

    has_digests: bool = True
    """Whether the records tell what a target must hold, or only where."""

    may_let_go: int = 0
    """How many takers may be let go; 0 where the image can be read only once."""

    _cursor: FreeCursor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Held while a chunk is offered, and while somebody is let go: he gets no chunk in between.
    _offering: threading.Lock = field(default_factory=threading.Lock)
    _free: "queue.SimpleQueue[_Slot]" = field(default_factory=queue.SimpleQueue)
    # Chunks that are free take no buffer, so the queue has a bound of its own.
    _loaded: "queue.Queue[_Loaded | None]" = field(default_factory=lambda: queue.Queue(_AHEAD))
    _stopped: bool = False
    _complete: bool = False
    _crash: BaseException | None = None

    def run(self) -> None:
        """Hand out every chunk; returns when the last was offered, or nobody takes any more.

        Whatever ends the reading but a fault of the image is raised here again.
        """
        for _ in range(self.buffers):
            self._free.put(_Slot(mmap.mmap(-1, CHUNK_SIZE)))
        reader = threading.Thread(target=self._read, name="read-image", daemon=True)
        reader.start()
        is_end = False
        try:
            is_end = self._hand_out_all()
        finally:
            self._stopped = True
            self._drain()
            # Targets read back now, and need the memory.
            self._free = queue.SimpleQueue()
            with self._offering:
                takers, self.takers = self.takers, []
            for taker in takers:
                taker.finish(complete=is_end and self._complete)
        if self._crash is not None:
            raise self._crash

    def stop(self) -> None:
        """Let `run` return soon, also while reading the image stands still."""
        self._stopped = True

    def _hand_out_all(self) -> bool:
        """Whether all that was read was handed out, and nothing more comes."""
        number = self.first
        while not self._stopped:
            try:
                loaded = self._loaded.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if loaded is None:
                return True
            if not self._hand_out(number, loaded):
                return False
            number += 1
        return False

    def _drain(self) -> None:
        """Let the reader come to its end, if it has not; one that stands still is left alone."""
        while True:
            try:
                loaded = self._loaded.get(timeout=_PATIENCE)
            except queue.Empty:
                return
            if loaded is None:
                return

    def _read(self) -> None:
        try:
            self._load_all()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._crash = error
        finally:
            self._loaded.put(None)

    def _load_all(self) -> None:
        try:
            self._cursor = self.open_cursor()
            for extent in islice(self.extents, self.first, None):
                loaded = self._load(extent)
                if loaded is None or self._stopped:
                    return
                self._loaded.put(loaded)
                if loaded.fault is not None:
                    return
            self._complete = True
        except ImageError as error:
            # The end of the image was looked for, and it is damaged there.
            self._loaded.put(_Loaded(Extent(0, 0), None, [], error))

    def _load(self, extent: Extent) -> _Loaded | None:
        """The chunk at ``extent``; ``None`` if it is not wanted any more."""
        free: list[Extent] = []
        slot = None
        try:
            free = [] if self._cursor is None else self._cursor.take(extent)
            if free == [extent]:
                return _Loaded(extent, None, free, None)
            slot = self._free_slot()
            if slot is None:
                return None
            view = memoryview(slot.memory)
            # Only this: what the cursor reads, it may want to read again.
            with self.source.sequential():
                self.source.readinto(extent.start, view[: extent.size])
            end = align_up(extent.size, BLOCK_SIZE)
            view[extent.size : end] = bytes(end - extent.size)
        except ImageError as error:
            if slot is not None:
                self._free.put(slot)
            return _Loaded(extent, None, free, error)
        return _Loaded(extent, slot, free, None)

    def _free_slot(self) -> _Slot | None:
        """A buffer, when there is one; ``None`` if none is needed any more."""
        while not self._stopped:
            try:
                return self._free.get(timeout=_PATIENCE)
            except queue.Empty:
                self._let_go_of_slowest()
        return None

    def _let_go_of_slowest(self) -> None:
        """Go on without the one who holds the buffers, if that keeps another waiting."""
        with self._offering:
            takers = self.takers
            if not self.may_let_go or len(takers) < 2:  # noqa: PLR2004 - alone it holds up nobody
                return
            slowest = max(takers, key=_waiting)
            if slowest.waiting >= self.buffers // 2 and min(map(_waiting, takers)) <= 1:
                self.may_let_go -= 1
                self.takers = [each for each in takers if each is not slowest]
                slowest.let_go()

    def _hand_out(self, number: int, loaded: _Loaded) -> bool:
        """Offer it to all; whether anybody took it."""
        chunk = _chunk(number, loaded, has_digest=self.has_digests)
        slot = loaded.slot
        with self._offering:
            if slot is not None:
                # One more for this thread, so that nobody frees it while it is being offered.
                slot.users = len(self.takers) + 1
            taking = [
                taker for taker in self.takers if taker.offer(chunk, lambda: self._release(slot))
            ]
            gone = len(self.takers) - len(taking)
            self.takers = taking
        for _ in range(gone + 1):
            self._release(slot)
        return bool(taking)

    def _release(self, slot: _Slot | None) -> None:
        if slot is None:
            return
        with self._lock:
            slot.users -= 1
            is_free = slot.users == 0
        if is_free and not self._stopped:
            self._free.put(slot)


def _waiting(taker: Taker) -> int:
    return taker.waiting


def _chunk(number: int, loaded: _Loaded, *, has_digest: bool) -> Chunk:
    extent = loaded.extent
    if loaded.slot is None:
        return Chunk(number, ChunkRecord(extent, (), b""), memoryview(b""), loaded.fault)
    view = memoryview(loaded.slot.memory)[: align_up(extent.size, BLOCK_SIZE)]
    # Shorter runs of zeros are written like data anyway.
    runs = classify(view[: extent.size], extent.start, loaded.free, coarse=True)
    return Chunk(number, make_record(extent, view, runs, has_digest=has_digest), view)


Release = Callable[[], None]

_STOP_INTERVAL = 0.1
"""Seconds between two looks at whether to stop, while nothing comes: a pipe may stand still."""


class ChunkQueue:
    """A `balenaflash.flashing.feed.Taker` for a target that takes its chunks in another thread."""

    def __init__(self, start_alone: "Callable[[ChunkQueue, int], None] | None" = None) -> None:
        """``start_alone`` starts a feed for this queue only, from the chunk of that number on."""
        self._start_alone = start_alone
        self._condition = threading.Condition()
        self._chunks = deque[tuple[Chunk, Release]]()
        self._next = 0
        self._in_hand = 0
        self._complete: bool | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Chunks that were not taken yet, and those in hand."""
        with self._condition:
            return len(self._chunks) + self._in_hand

    def offer(self, chunk: Chunk, release: Release) -> bool:
        """Put ``chunk`` at the end; False if no more are wanted."""
        with self._condition:
            if self._closed:
                return False
            if chunk.number != self._next:
                raise ValueError(f"chunk {chunk.number} comes instead of {self._next}")
            self._next += 1
            self._chunks.append((chunk, release))
            self._condition.notify()
            return True

    def finish(self, *, complete: bool) -> None:
        """No more chunks come."""
        with self._condition:
            self._complete = complete
            self._condition.notify()

    def let_go(self) -> None:
        """Drop what was not taken yet, and have a feed started for it."""
        with self._condition:
            if self._closed or self._start_alone is None:
                return
            dropped = list(self._chunks)
            self._chunks.clear()
            self._next -= len(dropped)
            first = self._next
        for _chunk, release in dropped:
            release()
        self._start_alone(self, first)

    def close(self) -> None:
        """Want no more chunks."""
        with self._condition:
            self._closed = True
            dropped = list(self._chunks)
            self._chunks.clear()
            self._condition.notify()
        for _chunk, release in dropped:
            release()

    def chunks(self, stop: Stop) -> Iterator[tuple[Chunk | None, Release]]:
        """Each chunk in its order, and what to call once when its buffer is not needed any more.

        ``None`` in place of a chunk, and the end, when ``stop`` says so while none comes.

        Raises:
            ImageError: reading the image broke off, and no chunk has told why.
        """
        while self._wait(stop):
            with self._condition:
                if not self._chunks:
                    return
                chunk, release = self._chunks.popleft()
                self._in_hand += 1
            yield chunk, self._returning(release)
        yield None, _nothing

    def _wait(self, stop: Stop) -> bool:
        """Wait for a chunk, or the end of all; False if ``stop`` says so before.

        Raises:
            ImageError: as ``chunks``.
        """
        with self._condition:
            while not self._chunks and self._complete is None and not self._closed:
                if not self._condition.wait(_STOP_INTERVAL) and stop():
                    return False
            if self._closed or (self._complete is False and not self._chunks):
                raise ImageError("reading the image broke off", code="image-failed")
            return True

    def _returning(self, release: Release) -> Release:
        def returned() -> None:
            with self._condition:
                self._in_hand -= 1
            release()

        return returned


def _nothing() -> None:
    """What there is to release where no chunk came."""


@contextmanager
def released_on_failure(release: Release) -> Iterator[None]:
    """Call ``release`` if the block fails."""
    try:
        yield
    except BaseException:
        release()
        raise


_BUFFERS = 8
"""Chunks in memory: reading, decoding and writing go on beside each other, with some to spare."""

_BUFFERS_ALONE = 4
"""Chunks in memory for one target that is slow: two being written, one ready, one being read."""

_MOST_ALONE = 6
"""Targets that may have a feed of their own: each takes memory, and decodes the image again."""


class Feeds:
    """The feeds of one run: one for all targets, and one for each that could not keep up."""

    def __init__(
        self, source: Source, plan: WritePlan, *, limit: int | None, has_digests: bool = True
    ) -> None:
        """Read nothing yet. More than ``limit`` bytes of an image are its fault.

        Without digests the chunks can be written, but not compared with anything.
        """
        self._source = source
        self._plan = plan
        self._limit = limit
        self._has_digests = has_digests
        self._lock = threading.Lock()
        self._feeds: list[tuple[Feed, threading.Thread]] = []
        self._queues: Sequence[ChunkQueue] = ()
        self._closing = False
        self._crash: BaseException | None = None

    def start(self, queues: Sequence[ChunkQueue]) -> None:
        """Feed ``queues`` from the first chunk on."""
        self._queues = queues
        most_alone = 0 if self._source.fork() is None else _MOST_ALONE
        self._start(
            Feed(
                self._source,
                self._plan.chunks(self._source, self._limit),
                lambda: self._plan.free_space(self._source),
                list(queues),
                buffers=_BUFFERS,
                has_digests=self._has_digests,
                may_let_go=most_alone,
            )
        )

    def start_alone(self, queue: ChunkQueue, first: int) -> None:
        """Feed ``queue`` alone, from the chunk of number ``first`` on."""
        source = self._source.fork()
        if source is None:
            raise ValueError("the image can be read only once")
        self._start(
            Feed(
                source,
                self._plan.chunks(source, self._limit),
                lambda: self._plan.free_space(source),
                [queue],
                first=first,
                buffers=_BUFFERS_ALONE,
                has_digests=self._has_digests,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let every feed come to its end.

        Raises:
            BaseException: what ended one of them, if it was no fault of the image: a bug.
        """
        with self._lock:
            self._closing = True
            feeds = list(self._feeds)
        for each in self._queues:
            each.close()
        for feed, _thread in feeds:
            feed.stop()
        if error is not None and not isinstance(error, Exception):
            return  # the user wants to leave at once
        for _feed, thread in feeds:
            thread.join()
        if self._crash is not None:
            raise self._crash

    def _start(self, feed: Feed) -> None:
        def run() -> None:
            try:
                feed.run()
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                self._crash = error

        thread = threading.Thread(target=run, name="feed", daemon=True)
        with self._lock:
            if self._closing:
                return
            self._feeds.append((feed, thread))
            thread.start()
