"""Bytes of a remote image in their order, resumed where the connection breaks."""

from http.client import HTTPException

from balenaflash.image.container.http_answer import Answer
from balenaflash.image.container.http_failures import BROKEN, interrupted, is_lasting
from balenaflash.image.container.http_remote import Remote
from balenaflash.image.container.prefetch import BLOCK_SIZE, Prefetch

_PROGRESS = 64 * 1024
"""Bytes after which a connection counts as a good one, and the tries begin anew."""


class RemoteStream:
    """The bytes of ``answer`` and those after it, up to ``end``; unknown ends are the server's."""

    def __init__(self, remote: Remote, answer: Answer, end: int | None) -> None:
        self.position = answer.start
        """Offset of the next byte."""

        self._remote = remote
        self._end = end
        self._tries = 0
        self._resumed_at = answer.start
        self._use(answer)

    @classmethod
    def starting(cls, remote: Remote, start: int, end: int | None) -> "RemoteStream":
        """A stream from ``start`` on, over a connection of its own.

        Raises:
            ImageError: the server does not give these bytes, after all tries.
        """
        tries = 0
        while True:
            try:
                return cls(remote, remote.ask_range(start, end), end)
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
        self.position += len(block)
        if self.position - self._resumed_at >= _PROGRESS:
            self._tries = 0
        return block

    def _resume(self, error: OSError | HTTPException | None) -> None:
        self.close()
        self._refuse_without_ranges(error)
        # A server may give less than was asked for (RFC 9110, section 15.3.7): no fault of it.
        pausing = self.position != self._answer.end
        while True:
            if pausing:
                _pause(self._remote, self._tries, self.position, error)
                self._tries += 1
            try:
                answer = self._remote.ask_range(self.position, self._end)
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
    if hopeless or enough or remote.closed.wait(remote.pauses[tries]):
        hint = f"It was tried {tries} times to go on. Check the network and start again."
        raise interrupted(remote.name, position, remote.total, error, hint) from error
