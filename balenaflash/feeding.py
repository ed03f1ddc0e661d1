"""Feed the chunks of an image to the queues of its targets, in the background."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from balenaflash.chunk_queue import ChunkQueue
from balenaflash.image.feed import Feed
from balenaflash.image.source import Source
from balenaflash.planning import WritePlan

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
        for queue in self._queues:
            queue.close()
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
