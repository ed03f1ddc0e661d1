"""A thread that reads ahead, so that the network and the decoding go on at the same time."""

from collections import deque
from collections.abc import Callable
from http.client import HTTPException
from threading import Condition, Thread

from balenaflash.extent import MIB

BLOCK_SIZE = MIB
"""Most bytes asked for at a time."""

AHEAD = 8 * MIB
"""Bytes that may wait to be taken; no more is read while there are as many."""


class Prefetch:
    """What ``read`` gives, in its order, read by a thread of its own.

    ``read(limit)`` gives the next 1 to ``limit`` bytes and ``b""`` at the end; ``interrupt``
    makes a call of it that waits return or fail at once.
    """

    def __init__(self, read: Callable[[int], bytes], interrupt: Callable[[], None]) -> None:
        self._read = read
        self._interrupt = interrupt
        self._changed = Condition()
        self._blocks: deque[memoryview] = deque()
        self._waiting = 0
        self._ended = False
        self._closing = False
        self._failure: OSError | HTTPException | None = None
        self._thread = Thread(target=self._run, name="http-read-ahead", daemon=True)
        self._thread.start()

    def take(self, limit: int) -> memoryview:
        """The next 1 to ``limit`` bytes, empty at the end or after `stop`.

        Raises:
            OSError: what ``read`` raised, after everything that it had given before.
            HTTPException: the same.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._ended or self._closing)
            if self._closing:
                return memoryview(b"")
            if not self._blocks:
                if self._failure is not None:
                    raise self._failure
                return memoryview(b"")
            block = self._blocks.popleft()
            if len(block) > limit:
                self._blocks.appendleft(block[limit:])
            taken = block[:limit]
            self._waiting -= len(taken)
            self._changed.notify_all()
            return taken

    def stop(self) -> None:
        """Let a waiting `take` and ``read`` end at once; from any thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._interrupt()

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.stop()
        self._thread.join()
        self._blocks.clear()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                block = self._read(BLOCK_SIZE)
                if not block:
                    return
                with self._changed:
                    self._blocks.append(memoryview(block))
                    self._waiting += len(block)
                    self._changed.notify_all()
        except (OSError, HTTPException) as error:
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < AHEAD or self._closing)
            return not self._closing
