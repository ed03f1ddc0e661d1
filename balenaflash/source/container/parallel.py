"""Work done by several threads, its results in order and never far ahead."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import Empty, SimpleQueue

from balenaflash.units import KIB

_BUFFER_SIZE = 256 * KIB
"""Bytes of most pieces."""


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def pieces_in_order(
    jobs: Iterator[Callable[[], Iterator[bytes]]], workers: int, begun: int
) -> Generator[memoryview, None, None]:
    """The pieces that each of ``jobs`` gives, in their order, made by ``workers`` threads.

    The pieces of the job whose turn it is come as they are made, and those of the others wait in
    memory: at most ``begun`` jobs are begun, or done, at a time. With as many as there are workers
    each waits where the job before its own takes longer. ``jobs`` is advanced by the thread that
    takes the pieces. What a job raises is raised here in its turn.
    """
    flows: deque[tuple[_Flow, Future[None]]] = deque()
    buffers = _Buffers()
    executor = ThreadPoolExecutor(workers)
    try:
        while True:
            for job in islice(jobs, begun - len(flows)):
                flow: _Flow = SimpleQueue()
                flows.append((flow, executor.submit(_make_pieces, job, flow, buffers)))
            if not flows:
                return
            flow, made = flows.popleft()
            for piece in iter(flow.get, None):
                yield piece
                buffers.give_back(piece)
            made.result()
    finally:
        buffers.closed = True
        executor.shutdown(cancel_futures=True)


_Flow = SimpleQueue[memoryview | None]
"""The pieces of a job, and ``None`` at its end."""


class _Buffers:
    """Memory for pieces that wait, used again and again.

    As many objects of their own they would stay in the heap: it keeps what a thread has freed for
    that thread, and each would hold the most it ever had.
    """

    def __init__(self) -> None:
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self.closed = False
        """Whether nobody takes any more pieces."""

    def keep(self, piece: bytes) -> memoryview:
        """``piece`` in memory of its own, until that is given back."""
        try:
            buffer = self._free.get_nowait()
        except Empty:
            buffer = memoryview(mmap.mmap(-1, _BUFFER_SIZE))
        if len(piece) > len(buffer):
            buffer = memoryview(mmap.mmap(-1, len(piece)))
        buffer[: len(piece)] = piece
        return buffer[: len(piece)]

    def give_back(self, kept: memoryview) -> None:
        """Have the memory of ``kept`` used again."""
        self._free.put(memoryview(kept.obj))


def _make_pieces(job: Callable[[], Iterator[bytes]], flow: _Flow, buffers: _Buffers) -> None:
    try:
        for piece in job():
            if buffers.closed:
                return
            flow.put(buffers.keep(piece))
    finally:
        flow.put(None)


class PiecesDecoder:
    """A decoder over pieces of an image that come in order, none of them empty."""

    def __init__(self, pieces: Generator[bytes | memoryview, None, None]) -> None:
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
