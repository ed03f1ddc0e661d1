"""Read an image once, and hand each chunk of it to everybody who takes them.

One thread reads and decodes, one finds what each chunk holds; a number of buffers bounds the
memory. Whoever takes chunks does so at a pace of its own: when all buffers wait for the slowest
while another has nothing to do, the slowest is let go and reads the image for itself.
"""

import mmap
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.allocation import FreeCursor
from balenaflash.image.chunks import CHUNK_SIZE, Chunk, ChunkRecord, blocks_of, make_record
from balenaflash.image.contents import classify
from balenaflash.image.source import Source

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
            view[extent.size : blocks_of(extent.size)] = bytes(blocks_of(extent.size) - extent.size)
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
    view = memoryview(loaded.slot.memory)[: blocks_of(extent.size)]
    # Shorter runs of zeros are written like data anyway.
    runs = classify(view[: extent.size], extent.start, loaded.free, coarse=True)
    return Chunk(number, make_record(extent, view, runs, has_digest=has_digest), view)
