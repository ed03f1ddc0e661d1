"""An image on a web server, read by ranges or as a stream, with read-ahead and resume."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Self

from balenaflash.source.http_client import BROKEN, interrupted, is_lasting
from balenaflash.source.http_remote import FIRST_WINDOW, Answer, Remote, tell_of_pause
from balenaflash.source.location import Url
from balenaflash.source.pipe import ForwardReader
from balenaflash.units import KIB, MIB

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


_TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try of a connection."""

_MAX_STREAMS = 3
"""Connections open at a time beside one for a fragment."""

_FRAGMENT_SIZE = 64 * KIB
"""Bytes asked for where a few are read out of order."""

_MAX_FRAGMENTS = 64
_FIRST_WINDOW = 256 * KIB
"""Bytes asked for of a stream that begins elsewhere than at the start."""

_STREAM_FROM = MIB
"""A read of so many bytes out of order begins a stream."""

_SKIPPED = MIB
"""Bytes of a stream that are rather read and dropped than a new connection made."""


@dataclass(frozen=True, slots=True)
class _Fragment:
    start: int
    content: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.content)


class HttpOrigin:
    """The bytes of an image on a web server.

    In order they come as one stream, read ahead by a thread (up to 8 MiB) and resumed where it
    breaks or stalls. Elsewhere they are asked for by range, where the server can do that: 64 KiB
    at a time, or as another such stream when the reading goes on there. Connections are used
    again.
    It may be used by several threads, one at a time gets its bytes.

    Raises:
        ImageError: the image cannot be reached (``image-unreachable``), is empty, or is sent
            in an encoding.
    """

    is_local = False

    def __init__(
        self, url: Url, *, timeout: float = _TIMEOUT, pauses: tuple[float, ...] = _PAUSES
    ) -> None:
        self._remote = Remote(url, timeout=timeout, pauses=pauses)
        answer = self._remote.open()
        first = RemoteStream(self._remote, answer, answer.total)
        self._streams = [first]
        self._forward = ForwardReader(first.take)
        self._fragments: deque[_Fragment] = deque(maxlen=_MAX_FRAGMENTS)
        self._lock = Lock()

    @property
    def name(self) -> str:
        """Scheme, host, port and path of the address."""
        return self._remote.name

    @property
    def size(self) -> int | None:
        """Bytes from start to end; unknown where the server does not tell."""
        return self._remote.total

    @property
    def seekable(self) -> bool:
        """Whether bytes can be asked for in any order."""
        return self._remote.has_ranges

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ImageError: the connection broke and could not be resumed (``image-interrupted``),
                the image is another than before (``image-changed``), or it was closed.
            ValueError: as `ForwardReader.read_at`, where it is not seekable.
        """
        with self._lock:
            if self._remote.total is None or not self.seekable:
                return self._forward.read_at(offset, length)
            return self._read_anywhere(offset, min(offset + length, self._remote.total))

    def open_file(self) -> None:
        """They are in no file."""

    def close(self) -> None:
        """End all connections and threads; a read in another thread ends with an error."""
        self._remote.stop()
        for stream in tuple(self._streams):
            stream.stop()
        with self._lock:
            for stream in self._streams:
                stream.close()
            self._streams.clear()
            self._remote.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_anywhere(self, position: int, end: int) -> bytes:
        pieces: list[bytes | memoryview] = []
        while position < end:
            piece = self._read_some(position, end)
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)

    def _read_some(self, position: int, end: int) -> bytes | memoryview:
        """Some bytes from ``position`` on, up to ``end``, from where they come soonest."""
        for fragment in self._fragments:
            if fragment.start <= position < fragment.end:
                return fragment.content[position - fragment.start : end - fragment.start]
        for stream in self._streams:
            if piece := stream.take_again(position, end - position):
                return piece
        near = self._stream_near(position)
        if near is None and not self._goes_on(position, end):
            return self._load_fragment(position, end)
        return (near or self._new_stream(position, end)).take(end - position)

    def _stream_near(self, position: int) -> RemoteStream | None:
        """The stream that comes to ``position`` soonest, brought there; the others stay."""
        found = [each for each in self._streams if 0 <= position - each.position <= _SKIPPED]
        if not found:
            return None
        stream = max(found, key=lambda each: each.position)
        while stream.position < position:
            stream.take(position - stream.position)
        self._streams.remove(stream)
        self._streams.append(stream)
        return stream

    def _goes_on(self, position: int, end: int) -> bool:
        is_next = any(fragment.end == position for fragment in self._fragments)
        return is_next or end - position >= _STREAM_FROM

    def _load_fragment(self, position: int, wanted: int) -> bytes:
        """The bytes from ``position`` on up to ``wanted``, and some more for the next reads."""
        total = self._remote.total or 0
        # The end has what a container is found by, read from back to front.
        start = min(position, max(0, total - _FRAGMENT_SIZE))
        end = min(max(start + _FRAGMENT_SIZE, wanted), total)
        stream = RemoteStream.starting(self._remote, start, end, end - start)
        try:
            content = stream.read_all()
        finally:
            stream.close()
        self._fragments.append(_Fragment(start, content))
        return content[position - start : wanted - start]

    def _new_stream(self, start: int, wanted: int) -> RemoteStream:
        window = max(_FIRST_WINDOW, wanted - start)
        stream = RemoteStream.starting(self._remote, start, self._remote.total, window)
        self._streams.append(stream)
        if len(self._streams) > _MAX_STREAMS:
            self._streams.pop(0).close()
        return stream
