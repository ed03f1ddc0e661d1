"""Bytes of a remote image in their order, resumed where the connection breaks."""

from collections import deque
from http.client import HTTPException

from balenaflash.extent import MIB
from balenaflash.image.container.http_answer import Answer
from balenaflash.image.container.http_failures import BROKEN, interrupted, is_lasting
from balenaflash.image.container.http_remote import FIRST_WINDOW, Remote, tell_of_pause
from balenaflash.image.container.prefetch import BLOCK_SIZE, Prefetch

_LARGEST_WINDOW = 32 * MIB
"""Bytes asked for at a time; whoever reads on for longer is given all that is left."""

_RECENT = MIB
"""Bytes that were taken and can be taken once more: a container is begun, and begun again."""

_PROGRESS = 64 * 1024
"""Bytes after which a connection counts as a good one, and the tries begin anew."""


class RemoteStream:
    """The bytes of ``answer`` and those after it, up to ``end``; unknown ends are the server's.

    They are asked for in windows, each twice as large as the one before: what a stream that is
    left was sent in vain is less than what it gave.
    """

    def __init__(self, remote: Remote, answer: Answer, end: int | None) -> None:
        self.position = answer.start
        """Offset of the next byte."""

        self._remote = remote
        self._end = end
        self._tries = 0
        self._resumed_at = answer.start
        self._window = FIRST_WINDOW if answer.end is None else answer.end - answer.start
        self._recent: deque[memoryview] = deque()
        self._recent_start = answer.start
        self._use(answer)

    @classmethod
    def starting(
        cls, remote: Remote, start: int, end: int | None, window: int = FIRST_WINDOW
    ) -> "RemoteStream":
        """A stream from ``start`` on, of which ``window`` bytes are asked for at first.

        Raises:
            ImageError: the server does not give these bytes, after all tries.
        """
        tries = 0
        while True:
            try:
                return cls(remote, remote.ask_range(start, _sooner(end, start + window)), end)
            except BROKEN as error:
                _pause(remote, tries, start, error)
                tries += 1

    def take(self, limit: int) -> memoryview:
        """The next 1 to ``limit`` bytes, empty at the end only.

        Raises:
            ImageError: the connection broke and could not be resumed, or the image was changed.
        """
        while self.position != self._end:
            try:
                block = self._prefetch.take(limit)
            except BROKEN as error:
                self._resume(error)
                continue
            if block:
                return self._pass(block)
            if self._end is None and not self._remote.closed.is_set():
                break
            self._resume(None)
        return memoryview(b"")

    def take_again(self, position: int, limit: int) -> memoryview:
        """Up to ``limit`` bytes from ``position`` on of those taken last; empty if they are gone.

        Only of those: what comes next is left for `take`.
        """
        if not self._recent_start <= position < self.position:
            return memoryview(b"")
        start = self._recent_start
        for block in self._recent:
            if position < start + len(block):
                return block[position - start :][:limit]
            start += len(block)
        return memoryview(b"")

    def read_all(self) -> bytes:
        """All bytes up to the end; errors as `take`."""
        pieces = []
        while block := self.take(BLOCK_SIZE):
            pieces.append(block)
        return b"".join(pieces)

    def stop(self) -> None:
        """Let a waiting `take` end; from any thread."""
        self._prefetch.stop()

    def close(self) -> None:
        """End the connection and the thread that reads it."""
        self._prefetch.close()
        self._answer.body.close()

    def _use(self, answer: Answer) -> None:
        self._answer = answer
        self._prefetch = Prefetch(answer.body.read, answer.body.interrupt)
        if self._remote.closed.is_set():
            # Closed by another thread while the server was asked.
            self._prefetch.stop()

    def _pass(self, block: memoryview) -> memoryview:
        if self._end is not None:
            block = block[: self._end - self.position]
        self._keep(block)
        self.position += len(block)
        if self.position - self._resumed_at >= _PROGRESS:
            self._tries = 0
        return block

    def _keep(self, block: memoryview) -> None:
        self._recent.append(block)
        while self.position - self._recent_start - len(self._recent[0]) >= _RECENT:
            self._recent_start += len(self._recent.popleft())

    def _resume(self, error: OSError | HTTPException | None) -> None:
        self.close()
        self._refuse_without_ranges(error)
        # A server may give less than was asked for (RFC 9110, section 15.3.7): no fault of it.
        pausing = self.position != self._answer.end
        if not pausing:
            self._window *= 2
        is_large = self._window > _LARGEST_WINDOW
        end = self._end if is_large else _sooner(self._end, self.position + self._window)
        while True:
            if pausing:
                _pause(self._remote, self._tries, self.position, error)
                self._tries += 1
            try:
                answer = self._remote.ask_range(self.position, end)
            except BROKEN as failure:
                error, pausing = failure, True
            else:
                self._resumed_at = self.position
                self._use(answer)
                return

    def _refuse_without_ranges(self, error: OSError | HTTPException | None) -> None:
        if not self._remote.has_ranges:
            hint = "The server cannot resume a transfer: start again, or download the image first."
            name, total = self._remote.name, self._remote.total
            raise interrupted(name, self.position, total, error, hint)


def _pause(
    remote: Remote, tries: int, position: int, error: OSError | HTTPException | None
) -> None:
    """Wait before the next try, longer each time.

    Raises:
        ImageError: there were enough tries, another is of no use, or the image was closed.
    """
    hopeless = error is not None and is_lasting(error)
    enough = tries >= len(remote.pauses)
    # The first one is soon over; some servers end each connection after a while.
    if tries and not (hopeless or enough or remote.closed.is_set()):
        tell_of_pause(remote.name, error, remote.pauses[tries])
    if hopeless or enough or remote.closed.wait(remote.pauses[tries]):
        hint = f"It was tried {tries} times to go on. Check the network and start again."
        raise interrupted(remote.name, position, remote.total, error, hint) from error


def _sooner(end: int | None, other: int) -> int:
    return other if end is None else min(end, other)
