"""An image on a web server, read by ranges or as a stream, with read-ahead and resume."""

from collections import deque
from collections.abc import Callable
from http.client import HTTPException
from ssl import SSLCertVerificationError
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Self

from balenaflash.source.http_client import BROKEN, interrupted
from balenaflash.source.http_remote import FIRST_WINDOW, Answer, Remote, tell_of_pause
from balenaflash.source.location import Url
from balenaflash.source.pipe import ForwardReader
from balenaflash.units import KIB, MIB

_BLOCK_SIZE = MIB
"""Most bytes read at a time."""

_AHEAD = 8 * MIB
"""Bytes read ahead; the thread waits while as many have not been taken."""


class _Prefetch:
    """The bytes that ``read`` returns, in their order, read ahead by a thread.

    ``read(limit)`` returns the next 1 to ``limit`` bytes, and ``b""`` at the end; ``interrupt``
    makes a waiting call of it return or fail at once.
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
            OSError: ``read`` raised it, after all bytes that it had returned before.
            HTTPException: likewise.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._ended or self._closing)
            if self._closing or not self._blocks:
                if self._failure is not None and not self._closing:
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
        """Make a waiting `take` and ``read`` end at once; from any thread."""
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
                block = self._read(_BLOCK_SIZE)
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
            self._changed.wait_for(lambda: self._waiting < _AHEAD or self._closing)
            return not self._closing


_LARGEST_WINDOW = 32 * MIB
"""Bytes requested at a time; after a window as large, all remaining bytes are requested."""

_RECENT = MIB
"""Bytes taken last that can be taken again: a container is read from its start more than once."""

_PROGRESS = 64 * KIB
"""Bytes after which a connection counts as good, and the tries are counted anew."""


class RemoteStream:
    """The bytes of ``answer`` and those after it, up to ``end``, or to the server's end.

    They are requested in windows, each twice as large as the one before: when the stream is left,
    the server has sent fewer bytes in vain than were used.
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
    ) -> Self:
        """A stream from ``start`` on, of which ``window`` bytes are requested first.

        Raises:
            ImageError: the server does not send these bytes, after all tries.
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
        """Up to ``limit`` of the bytes taken last, from ``position`` on.

        Empty if they are gone, or have not been taken yet.
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
        while block := self.take(_BLOCK_SIZE):
            pieces.append(block)
        return b"".join(pieces)

    def stop(self) -> None:
        """Make a waiting `take` end; from any thread."""
        self._prefetch.stop()

    def close(self) -> None:
        """Close the connection and end the thread that reads it."""
        self._prefetch.close()
        self._answer.body.close()

    def _use(self, answer: Answer) -> None:
        self._answer = answer
        self._prefetch = _Prefetch(answer.body.read, answer.body.interrupt)
        if self._remote.closed.is_set():
            # Another thread has closed it during the request.
            self._prefetch.stop()

    def _pass(self, block: memoryview) -> memoryview:
        if self._end is not None:
            block = block[: self._end - self.position]
        self._recent.append(block)
        while self.position - self._recent_start - len(self._recent[0]) >= _RECENT:
            self._recent_start += len(self._recent.popleft())
        self.position += len(block)
        if self.position - self._resumed_at >= _PROGRESS:
            self._tries = 0
        return block

    def _resume(self, error: OSError | HTTPException | None) -> None:
        self.close()
        if not self._remote.has_ranges:
            hint = "The server cannot resume a transfer: start again, or download the image first."
            name, total = self._remote.name, self._remote.total
            raise interrupted(name, self.position, total, error, hint)
        # A server may send less than was requested (RFC 9110, section 15.3.7): not a failure.
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


def _pause(
    remote: Remote, tries: int, position: int, error: OSError | HTTPException | None
) -> None:
    """Wait before the next try, longer each time.

    Raises:
        ImageError: there were enough tries, another would fail as well, or the image was closed.
    """
    # A certificate does not become valid by another try.
    is_last = isinstance(error, SSLCertVerificationError) or tries >= len(remote.pauses)
    # The first pause is short, and some servers end each connection after a while.
    if tries and not (is_last or remote.closed.is_set()):
        tell_of_pause(remote.name, error, remote.pauses[tries])
    if is_last or remote.closed.wait(remote.pauses[tries]):
        hint = f"Resuming it failed {tries} times. Check the network and start again."
        raise interrupted(remote.name, position, remote.total, error, hint) from error


def _sooner(end: int | None, other: int) -> int:
    return other if end is None else min(end, other)


_TIMEOUT = 30.0
"""Seconds without a byte after which a connection has failed."""

_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of a connection."""

_MAX_STREAMS = 3
"""Connections open at a time, besides one for a fragment."""

_FRAGMENT_SIZE = 64 * KIB
"""Bytes requested if a few are read out of order."""

_MAX_FRAGMENTS = 64
_FIRST_WINDOW = 256 * KIB
"""Bytes requested first of a stream that does not begin at the start."""

_STREAM_FROM = MIB
"""Bytes of a read out of order from which it begins a stream."""

_SKIPPED = MIB
"""Bytes of a stream that are read and dropped rather than a new connection made."""


class HttpOrigin:
    """The bytes of an image on a web server.

    In order they are read as one stream, which a thread reads ahead (up to 8 MiB) and which is
    resumed if it breaks or stalls. Bytes elsewhere are requested by range, if the server supports
    that: 64 KiB at a time, or as another such stream if the reading goes on there. Connections
    are used again. Several threads may read, one at a time.

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
        self._fragments: deque[tuple[int, bytes]] = deque(maxlen=_MAX_FRAGMENTS)
        """Offset and content of each."""

        self._lock = Lock()

    @property
    def name(self) -> str:
        return self._remote.name

    @property
    def size(self) -> int | None:
        return self._remote.total

    @property
    def seekable(self) -> bool:
        return self._remote.has_ranges

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ImageError: the connection broke and could not be resumed (``image-interrupted``),
                the image is another than before (``image-changed``), or it was closed.
            ValueError: as `ForwardReader.read_at`, if it is not seekable.
        """
        with self._lock:
            if self._remote.total is None or not self.seekable:
                return self._forward.read_at(offset, length)
            return self._read_anywhere(offset, min(offset + length, self._remote.total))

    def open_file(self) -> None:
        pass

    def close(self) -> None:
        """Close all connections and end the threads; a read in another thread fails."""
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
        """Some bytes from ``position`` on, up to ``end``, from the nearest place."""
        for start, content in self._fragments:
            if start <= position < start + len(content):
                return content[position - start : end - start]
        for stream in self._streams:
            if piece := stream.take_again(position, end - position):
                return piece
        near = self._stream_near(position)
        if near is None and not self._goes_on(position, end):
            return self._load_fragment(position, end)
        return (near or self._new_stream(position, end)).take(end - position)

    def _stream_near(self, position: int) -> RemoteStream | None:
        """The stream nearest to ``position``, moved there; ``None`` if none is near enough."""
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
        is_next = any(start + len(content) == position for start, content in self._fragments)
        return is_next or end - position >= _STREAM_FROM

    def _load_fragment(self, position: int, wanted: int) -> bytes:
        """The bytes from ``position`` up to ``wanted``; more are kept for the next reads."""
        total = self._remote.total or 0
        # The index of a container is at its end, and is read from back to front.
        start = min(position, max(0, total - _FRAGMENT_SIZE))
        end = min(max(start + _FRAGMENT_SIZE, wanted), total)
        stream = RemoteStream.starting(self._remote, start, end, end - start)
        try:
            content = stream.read_all()
        finally:
            stream.close()
        self._fragments.append((start, content))
        return content[position - start : wanted - start]

    def _new_stream(self, start: int, wanted: int) -> RemoteStream:
        window = max(_FIRST_WINDOW, wanted - start)
        stream = RemoteStream.starting(self._remote, start, self._remote.total, window)
        self._streams.append(stream)
        if len(self._streams) > _MAX_STREAMS:
            self._streams.pop(0).close()
        return stream
