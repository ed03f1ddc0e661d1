"""Read ranges of an image by a thread that stays ahead of their user."""

import mmap
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle

from balenaflash.extent import Extent
from balenaflash.image.allocation import FreeCursor
from balenaflash.image.source import Source

_READ_AHEAD = 2
"""Buffers beside the one in use."""

_Loaded = tuple[Extent, memoryview, list[Extent]]


def read_ahead(
    source: Source, extents: Iterable[Extent], largest: int, cursor: FreeCursor | None = None
) -> Generator[tuple[Extent, memoryview, list[Extent]]]:
    """Each of ``extents``, none longer than ``largest`` bytes, its bytes, and what of it is free.

    ``cursor`` tells that, from what it reads before the bytes themselves pass.

    These are valid until the next are asked for. To be closed where it is not read to its end.

    Raises:
        ImageError: the image cannot be read there; ranges before it were handed on.
    """
    buffers = cycle([memoryview(mmap.mmap(-1, largest)) for _ in range(_READ_AHEAD + 1)])
    pool = ThreadPoolExecutor(1, "read-ahead")

    def load(extent: Extent, buffer: memoryview) -> _Loaded:
        free = [] if cursor is None else cursor.take(extent)
        # Only this: what the cursor reads, it may want to read again.
        with source.sequential():
            source.readinto(extent.start, buffer)
        return extent, buffer, free

    def submitted() -> Iterator[Future[_Loaded]]:
        for extent in extents:
            yield pool.submit(load, extent, next(buffers)[: extent.size])

    waiting = submitted()
    pending: deque[Future[_Loaded]] = deque()
    try:
        while True:
            # The buffer of the range that the caller is through with is the next to be filled.
            while len(pending) <= _READ_AHEAD and (future := next(waiting, None)) is not None:
                pending.append(future)
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
