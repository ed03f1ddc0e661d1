"""An image on a web server."""

from collections import deque
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Self

from balenaflash.extent import KIB, MIB
from balenaflash.image.container.forward import ForwardReader
from balenaflash.image.container.http_remote import Remote
from balenaflash.image.container.http_stream import RemoteStream
from balenaflash.image.container.location import Url

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
