"""Work done by several threads, its results in order and never far ahead."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def in_order(jobs: Iterator[Callable[[], Result]], workers: int) -> Generator[Result, None, None]:
    """The results of ``jobs``, in their order, done by ``workers`` threads.

    ``jobs`` is advanced by the thread that takes the results. One job more than there are workers
    is begun before its result is asked for. What a job raises is raised here in its turn.
    """
    waiting: deque[Future[Result]] = deque()
    executor = ThreadPoolExecutor(workers)
    try:
        for job in jobs:
            waiting.append(executor.submit(job))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


class PiecesDecoder:
    """A decoder over pieces of an image that come in order, none of them empty."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer):
            if not self._rest and not self._take():
                break
            count = min(len(self._rest), len(buffer) - filled)
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def skip(self, length: int) -> None:
        """Leave out the next ``length`` bytes, decoded but not copied."""
        while length:
            if not self._rest and not self._take():
                return
            count = min(len(self._rest), length)
            self._rest = self._rest[count:]
            length -= count

    def _take(self) -> bool:
        """Go on to the next piece; whether there is one."""
        self._rest = memoryview(next(self._pieces, b""))
        return bool(self._rest)

    def close(self) -> None:
        """Stop the work that is under way."""
        self._rest = memoryview(b"")
        self._pieces.close()
