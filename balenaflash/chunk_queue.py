"""The chunks of an image on their way to one target."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balenaflash.errors import ImageError
from balenaflash.image.chunks import Chunk
from balenaflash.stopping import Stop

Release = Callable[[], None]

_STOP_INTERVAL = 0.1
"""Seconds between two looks at whether to stop, while nothing comes: a pipe may stand still."""


class ChunkQueue:
    """A `balenaflash.image.feed.Taker` for a target that takes its chunks in another thread."""

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
