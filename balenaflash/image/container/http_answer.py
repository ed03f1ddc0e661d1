"""An answer of a web server: which bytes of which version of a file it brings."""

import os
import re
import socket
import struct
from dataclasses import dataclass
from http.client import HTTPResponse
from threading import Lock
from typing import Self

from balenaflash.errors import ImageError

_NUMBER = r"([0-9]{1,18})"
_CONTENT_RANGE = re.compile(rf"bytes {_NUMBER}-{_NUMBER}/{_NUMBER}")  # RFC 9110, section 14.4

_RESET = struct.pack("@ii", 1, 0)
"""struct linger, linux/socket.h: on, with no time. The server learns at once that nobody reads."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of an address from another (RFC 9110, section 8.8)."""

    etag: str | None
    modified: str | None
    """Last-Modified, as the server wrote it."""

    @classmethod
    def of(cls, response: HTTPResponse) -> Self:
        """The validators that the server sent."""
        return cls(response.getheader("ETag"), response.getheader("Last-Modified"))

    @property
    def condition(self) -> str | None:
        """What to send as If-Range; `None` when only a weak ETag is there, or nothing."""
        if self.etag is not None and self.etag.startswith('"'):
            return self.etag
        return self.modified

    def differs(self, other: Self) -> bool:
        """Whether both speak, and not of the same content.

        A partial answer may leave out Last-Modified (RFC 9110, section 15.3.7).
        """
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        return None not in {self.modified, other.modified} and self.modified != other.modified


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The half-open range ``[start, end)`` of ``total`` bytes."""

    start: int
    end: int
    total: int

    @classmethod
    def of(cls, response: HTTPResponse) -> Self | None:
        """What the answer says it brings; `None` where it says nothing that can be used."""
        match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", "").strip())
        if match is None:
            return None
        first, last, total = (int(number) for number in match.groups())
        return cls(first, last + 1, total) if first <= last < total else None


class Body:
    """The bytes that an answer brings, read once in their order."""

    def __init__(self, response: HTTPResponse, length: int | None) -> None:
        self._response = response
        self._left = length
        # A second descriptor of the connection, to end a wait in `read` from another thread.
        self._handle = socket.socket(fileno=os.dup(response.fileno()))
        # Its number must not become another file's between two steps of `interrupt`.
        self._handle_lock = Lock()

    def read(self, limit: int) -> bytes:
        """The next 1 to ``limit`` bytes; ``b""`` at the end, and where the server stopped."""
        if self._left is not None:
            # Content-Range counts, also where more follows it.
            limit = min(limit, self._left)
        block = self._response.read1(limit) if limit else b""
        if self._left is not None:
            self._left -= len(block)
        return block

    def interrupt(self) -> None:
        """Make a `read` that waits, and all after it, end at once; from any thread."""
        with self._handle_lock:
            try:
                self._handle.shutdown(socket.SHUT_RD)
            except OSError:
                # ENOTCONN: the server has ended the connection; EBADF: so have we.
                return

    def close(self) -> None:
        """End the connection at once: what is on its way is thrown away (socket(7), SO_LINGER)."""
        with self._handle_lock:
            if self._handle.fileno() != -1:
                self._handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._handle.close()
        self._response.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that brings bytes of the image."""

    body: Body
    start: int
    """Offset of the first byte in the image."""

    end: int | None
    """Offset one past the last byte; unknown where the server does not tell."""

    total: int | None
    """Bytes of the whole image; unknown where the server does not tell."""

    version: Version
    has_ranges: bool
    """Whether the server says that it answers ranges."""


def read_partial(response: HTTPResponse) -> Answer | None:
    """What a 206 brings; `None` where it does not say which bytes."""
    place = ContentRange.of(response)
    if place is None or response.isclosed():  # closed at once: Content-Length: 0
        return None
    body = Body(response, place.end - place.start)
    return Answer(body, place.start, place.end, place.total, Version.of(response), has_ranges=True)


def read_whole(response: HTTPResponse) -> Answer:
    """What a 200 brings: everything, from the start."""
    total = content_length(response)
    has_ranges = response.getheader("Accept-Ranges", "").strip().lower() == "bytes"
    body = Body(response, total)
    return Answer(body, 0, total, total, Version.of(response), has_ranges)


def content_length(response: HTTPResponse) -> int | None:
    """Bytes that follow, where the server says so and does not send in chunks."""
    length = response.getheader("Content-Length", "").strip()
    if response.getheader("Transfer-Encoding") or not re.fullmatch(_NUMBER, length):
        return None
    return int(length)


def require_identity(name: str, response: HTTPResponse) -> None:
    """Refuse a body that is encoded on its way, such as compressed.

    Raises:
        ImageError: it is.
    """
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        shown = encoding if re.fullmatch(r"[a-z0-9-]{1,20}", encoding) else "something"
        raise ImageError(
            f"{name}: the server sends it encoded as {shown}, although it was asked not to",
            code="image-encoded",
            hint="Download it first, without that encoding.",
        )
