"""One image on a web server: requests of its bytes, and the answers to them."""

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from threading import Event, Lock
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.progress import report_delay
from balenaflash.source.http_client import (
    BROKEN,
    BusyError,
    Client,
    Reply,
    describe,
    interrupted,
    raise_for_status,
    unreachable,
)
from balenaflash.source.location import Url
from balenaflash.units import MIB

_NUMBER = r"([0-9]{1,18})"
_CONTENT_RANGE = re.compile(rf"bytes {_NUMBER}-{_NUMBER}/{_NUMBER}")  # RFC 9110, section 14.4

_LEAST_RATE = 1024
"""Bytes per second that a server has to send while the reader waits for it."""

_RESET = struct.pack("@ii", 1, 0)
"""struct linger, linux/socket.h: on, with no time. The server learns at once of the close."""


@dataclass(frozen=True, slots=True)
class Version:
    """The validators by which contents of one address differ (RFC 9110, section 8.8)."""

    etag: str | None
    modified: str | None
    """Last-Modified, as the server sent it."""

    @classmethod
    def of(cls, response: HTTPResponse) -> Self:
        return cls(response.getheader("ETag"), response.getheader("Last-Modified"))

    @property
    def condition(self) -> str | None:
        """Value for If-Range; ``None`` if the server sent only a weak ETag, or nothing."""
        if self.etag is not None and self.etag.startswith('"'):
            return self.etag
        return self.modified

    def differs(self, other: Self) -> bool:
        """True if both have the same validator, with different values.

        A partial answer may omit Last-Modified (RFC 9110, section 15.3.7).
        """
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        return None not in {self.modified, other.modified} and self.modified != other.modified


class Body:
    """The bytes of an answer, read once in their order."""

    def __init__(self, reply: Reply, length: int | None) -> None:
        """``length`` is the number of bytes to read, also if more of them follow."""
        self._reply = reply
        self._response = reply.response
        self._left = length
        # Only the time in which the server is waited for counts, so that a slow reader is not
        # refused.
        self._waited = 0.0
        self._came = 0
        # A second descriptor of the connection, by which another thread ends a wait in `read`.
        self._handle = socket.socket(fileno=os.dup(self._response.fileno()))
        # Its number must not become that of another file during `interrupt`.
        self._handle_lock = Lock()

    @property
    def is_complete(self) -> bool:
        """True if all bytes of the answer were read."""
        return self._left == 0

    def read(self, limit: int) -> bytes:
        """The next 1 to ``limit`` bytes; ``b""`` at the end, and if the server stopped.

        Raises:
            TimeoutError: the server sends next to nothing.
        """
        if self._left is not None:
            limit = min(limit, self._left)
        since = time.monotonic()
        block = self._response.read1(limit) if limit else b""
        self._waited += time.monotonic() - since
        self._came += len(block)
        if self._waited >= self._reply.timeout:
            if self._came < _LEAST_RATE * self._waited:
                raise TimeoutError("next to nothing comes")
            self._waited, self._came = 0.0, 0
        if self._left is not None:
            self._left -= len(block)
        return block

    def interrupt(self) -> None:
        """Make a `read` that waits, and all later ones, end at once; from any thread."""
        if self.is_complete:
            return  # no read waits, and the connection may be used again
        with self._handle_lock:
            try:
                self._handle.shutdown(socket.SHUT_RD)
            except OSError:
                # ENOTCONN: the server has ended the connection; EBADF: so have we.
                return

    def close(self) -> None:
        """Keep the connection for the next request, or end it if the answer is not at its end.

        Bytes on their way are dropped then (socket(7), SO_LINGER). May be called again.
        """
        with self._handle_lock:
            if self._handle.fileno() == -1:
                return
            is_kept = self.is_complete and self._reply.give_back()
            if not is_kept:
                self._handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._handle.close()
        if not is_kept:
            self._reply.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with bytes of the image."""

    body: Body
    start: int
    """Offset in the image of the first byte."""

    end: int | None
    """Offset one past the last byte; ``None`` if the server does not report it."""

    total: int | None
    """Bytes of the whole image; ``None`` if the server does not report it."""

    version: Version
    has_ranges: bool
    """True if the server supports ranges, by its own word."""

    @classmethod
    def of_whole(cls, reply: Reply) -> Self:
        """The answer with status 200: everything from the start."""
        response = reply.response
        total = _content_length(response)
        has_ranges = response.getheader("Accept-Ranges", "").strip().lower() == "bytes"
        return cls(Body(reply, total), 0, total, total, Version.of(response), has_ranges)

    @classmethod
    def of_part(cls, reply: Reply, start: int, end: int, total: int) -> Self:
        """The answer with status 206: the bytes ``[start, end)``."""
        version = Version.of(reply.response)
        return cls(Body(reply, end - start), start, end, total, version, has_ranges=True)

    @property
    def can_be_continued(self) -> bool:
        """True if other bytes of the same version can be requested."""
        return self.has_ranges and self.total is not None and self.version.condition is not None


def _content_range(response: HTTPResponse) -> tuple[int, int, int] | None:
    """Start, end (exclusive) and total of the bytes that a 206 contains; ``None`` if unusable."""
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", "").strip())
    if match is None or response.isclosed():  # closed at once: Content-Length: 0
        return None
    first, last, total = map(int, match.groups())
    return (first, last + 1, total) if first <= last < total else None


def _content_length(response: HTTPResponse) -> int | None:
    """Number of bytes that follow; ``None`` if the server omits it or sends chunks."""
    length = response.getheader("Content-Length", "").strip()
    if response.getheader("Transfer-Encoding") or not re.fullmatch(_NUMBER, length):
        return None
    return int(length)


def _require_identity(name: str, response: HTTPResponse) -> None:
    """Refuse a body that is encoded for the transfer, such as compressed.

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


FIRST_WINDOW = MIB
"""Bytes of the first request: to inspect an image needs no more."""

_OK = 200
_PARTIAL = 206
_NOT_SATISFIABLE = 416


class Remote:
    """Requests of the bytes of one image, all of the same version.

    ``pauses`` are the seconds to wait before each new try; ``closed`` ends a pause.
    """

    def __init__(self, url: Url, *, timeout: float, pauses: Sequence[float]) -> None:
        self.name = str(url)
        self.pauses = pauses
        self.closed = Event()
        self._client = Client(url, timeout=timeout)
        self._version = Version(None, None)
        self.total: int | None = None
        self.has_ranges = False

    def open(self) -> Answer:
        """The image from its start: all of it if the server does not support ranges.

        The request is repeated if the server is busy, but not if it cannot be reached.

        Raises:
            ImageError: there is no image, it may not be read, or it is empty.
        """
        tries = 0
        while True:
            try:
                return self._first()
            except BROKEN as error:
                if not isinstance(error, BusyError) or tries == len(self.pauses):
                    raise unreachable(self.name, error) from error
                tell_of_pause(self.name, error, self.pauses[tries])
            self.closed.wait(self.pauses[tries])
            tries += 1

    def stop(self) -> None:
        """Refuse further requests, and end those that wait for an answer; from any thread."""
        self.closed.set()
        self._client.stop()

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def ask_range(self, start: int, end: int | None) -> Answer:
        """The bytes from ``start`` on, up to ``end`` or fewer.

        Raises:
            ImageError: the image was changed, or the server no longer supports ranges.
            OSError: there was no answer, or the server is busy.
            HTTPException: the answer is not HTTP.
        """
        if self.closed.is_set():
            raise interrupted(self.name, start, self.total, None, "Open it again.")
        last = "" if end is None else end - 1
        headers = {"Range": f"bytes={start}-{last}"}
        if self._version.condition is not None:
            headers["If-Range"] = self._version.condition
        reply = self._client.ask(headers)
        with _closed_on_error(reply):
            return self._expected(reply, start)

    def _first(self) -> Answer:
        # The answer to a range shows if the server supports ranges, and costs no request.
        answer = self._begin({"Range": f"bytes=0-{FIRST_WINDOW - 1}"})
        if answer is not None and answer.end != answer.total and not answer.can_be_continued:
            # Other bytes may belong to another version.
            answer.body.close()
            answer = None
        answer = answer or self._begin({})
        if answer is None:
            raise ImageError(
                f"{self.name}: the server sends a part of the image that was not requested",
                code="image-unreachable",
                hint="Download it first.",
            )
        self._version = answer.version
        self.total = answer.total
        self.has_ranges = answer.can_be_continued
        return answer

    def _begin(self, headers: dict[str, str]) -> Answer | None:
        """The image from its start; ``None`` if the server misunderstood the range."""
        reply = self._client.ask(headers)
        with _closed_on_error(reply):
            answer = self._from_start(reply)
        if answer is None:
            reply.close()
        return answer

    def _from_start(self, reply: Reply) -> Answer | None:
        response = reply.response
        content_range = response.getheader("Content-Range", "").strip()
        if response.status == _NOT_SATISFIABLE and content_range != "bytes */0":
            return None
        if content_range == "bytes */0" or _content_length(response) == 0:
            self._refuse_empty(response.status)
        if response.status not in {_OK, _PARTIAL}:
            raise_for_status(self.name, response.status)
        _require_identity(self.name, response)
        if response.status == _OK:
            return Answer.of_whole(reply)
        place = _content_range(response)
        if place is None or place[:2] != (0, min(place[2], FIRST_WINDOW)):
            return None
        return Answer.of_part(reply, *place)

    def _refuse_empty(self, status: int) -> None:
        if status in {_OK, _PARTIAL, _NOT_SATISFIABLE}:
            raise ImageError(
                f"{self.name}: is empty",
                code="image-empty",
                hint="The upload to the server has probably failed.",
            )

    def _expected(self, reply: Reply, start: int) -> Answer:
        response = reply.response
        if response.status not in {_OK, _PARTIAL, _NOT_SATISFIABLE}:
            raise_for_status(self.name, response.status)
        if response.status == _NOT_SATISFIABLE or self._version.differs(Version.of(response)):
            raise self._changed()
        if response.status == _OK:
            raise self._without_ranges(start)
        _require_identity(self.name, response)
        place = _content_range(response)
        if place is not None and place[2] != self.total:
            raise self._changed()
        if place is None or place[0] != start:
            raise self._without_ranges(start)
        return Answer.of_part(reply, *place)

    def _changed(self) -> ImageError:
        return ImageError(
            f"{self.name}: was changed on the server while it was read",
            code="image-changed",
            hint="Start again. If it happens again, the servers of this address differ.",
        )

    def _without_ranges(self, start: int) -> ImageError:
        return ImageError(
            f"{self.name}: the server does not send the bytes from {start} on",
            code="image-interrupted",
            hint="Start again, or download the image first.",
        )


@contextmanager
def _closed_on_error(reply: Reply) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reply.close()
        raise


def tell_of_pause(name: str, error: Exception | None, pause: float) -> None:
    """Report the reason for a pause of ``pause`` seconds."""
    report_delay(f"{name}: {describe(error)}; trying again in {pause:g} s")
