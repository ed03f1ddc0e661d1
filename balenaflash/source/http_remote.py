"""One image on a web server: the answers about it, and requests from any byte on."""

import os
import re
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from threading import Event, Lock
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.progress import tell
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
"""Bytes per second that a server has to send while it is waited for."""

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

    def __init__(self, reply: Reply, length: int | None) -> None:
        self._reply = reply
        self._response = reply.response
        self._left = length
        self._patience = _Patience(reply.timeout)
        # A second descriptor of the connection, to end a wait in `read` from another thread.
        self._handle = socket.socket(fileno=os.dup(self._response.fileno()))
        # Its number must not become another file's between two steps of `interrupt`.
        self._handle_lock = Lock()

    @property
    def is_complete(self) -> bool:
        """Whether all was read that the answer brings."""
        return self._left == 0

    def read(self, limit: int) -> bytes:
        """The next 1 to ``limit`` bytes; ``b""`` at the end, and where the server stopped.

        Raises:
            TimeoutError: it sends next to nothing.
        """
        if self._left is not None:
            # Content-Range counts, also where more follows it.
            limit = min(limit, self._left)
        with self._patience:
            block = self._response.read1(limit) if limit else b""
            self._patience.came(len(block))
        if self._left is not None:
            self._left -= len(block)
        return block

    def interrupt(self) -> None:
        """Make a `read` that waits, and all after it, end at once; from any thread."""
        if self.is_complete:
            return  # nothing waits, and the connection may be used again
        with self._handle_lock:
            try:
                self._handle.shutdown(socket.SHUT_RD)
            except OSError:
                # ENOTCONN: the server has ended the connection; EBADF: so have we.
                return

    def close(self) -> None:
        """Leave the connection to the next request, or end it where the answer goes on.

        What is on its way is thrown away then (socket(7), SO_LINGER). May be called again.
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


class _Patience:
    """Ends the waiting for a server that sends a byte now and then.

    Only the time counts in which it is waited for, so that who reads slowly is not punished.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._waited = 0.0
        self._came = 0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._waited += time.monotonic() - self._since
        if self._waited >= self._period:
            is_slow = self._came < _LEAST_RATE * self._waited
            self._waited, self._came = 0.0, 0
            if is_slow and error is None:
                raise TimeoutError("next to nothing comes")

    def came(self, size: int) -> None:
        """Count ``size`` bytes."""
        self._came += size


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

    @property
    def can_be_continued(self) -> bool:
        """Whether other bytes of the same version can be asked for."""
        return self.has_ranges and self.total is not None and self.version.condition is not None


def read_partial(reply: Reply) -> Answer | None:
    """What a 206 brings; `None` where it does not say which bytes."""
    response = reply.response
    place = ContentRange.of(response)
    if place is None or response.isclosed():  # closed at once: Content-Length: 0
        return None
    body = Body(reply, place.end - place.start)
    return Answer(body, place.start, place.end, place.total, Version.of(response), has_ranges=True)


def read_whole(reply: Reply) -> Answer:
    """What a 200 brings: everything, from the start."""
    response = reply.response
    total = content_length(response)
    has_ranges = response.getheader("Accept-Ranges", "").strip().lower() == "bytes"
    body = Body(reply, total)
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


FIRST_WINDOW = MIB
"""Bytes asked for at first: a look at an image needs no more."""

_OK = 200
_PARTIAL = 206
_NOT_SATISFIABLE = 416


class Remote:
    """Asks for the bytes of one image, and sees to it that it stays the same.

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
        """The image from its start on: all of it where the server gives no ranges.

        A server that is busy is asked again; one that cannot be reached is not.

        Raises:
            ImageError: there is nothing, it may not be read, or it is empty.
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
        """Ask nothing more, and end what waits for an answer; from any thread."""
        self.closed.set()
        self._client.stop()

    def close(self) -> None:
        """End the connections that are idle."""
        self._client.close()

    def ask_range(self, start: int, end: int | None) -> Answer:
        """The bytes from ``start`` on, up to ``end`` or less of them.

        Raises:
            ImageError: the image was changed, or the server no longer answers ranges.
            OSError: nobody answered, or not now.
            HTTPException: what answered does not speak HTTP.
        """
        if self.closed.is_set():
            raise interrupted(self.name, start, self.total, None, "Open it again.")
        last = "" if end is None else end - 1
        headers = {"Range": f"bytes={start}-{last}"}
        if self._version.condition is not None:
            headers["If-Range"] = self._version.condition
        reply = self._client.ask(headers)
        try:
            return self._expected(reply, start)
        except BaseException:
            reply.close()
            raise

    def _first(self) -> Answer:
        # A range tells whether the server answers ranges, and costs no request.
        answer = self._begin({"Range": f"bytes=0-{FIRST_WINDOW - 1}"})
        if answer is not None and answer.end != answer.total and not answer.can_be_continued:
            # Other bytes may belong to another version.
            answer.body.close()
            answer = None
        answer = answer or self._begin({})
        if answer is None:
            raise ImageError(
                f"{self.name}: the server sends a part of the image that was not asked for",
                code="image-unreachable",
                hint="Download it first.",
            )
        self._version = answer.version
        self.total = answer.total
        self.has_ranges = answer.can_be_continued
        return answer

    def _begin(self, headers: dict[str, str]) -> Answer | None:
        """The image from its start; `None` where the server misunderstood the range."""
        reply = self._client.ask(headers)
        try:
            answer = self._from_start(reply)
        except BaseException:
            reply.close()
            raise
        if answer is None:
            reply.close()
        return answer

    def _from_start(self, reply: Reply) -> Answer | None:
        response = reply.response
        content_range = response.getheader("Content-Range", "").strip()
        if response.status == _NOT_SATISFIABLE and content_range != "bytes */0":
            return None
        if content_range == "bytes */0" or content_length(response) == 0:
            self._refuse_empty(response.status)
        if response.status not in {_OK, _PARTIAL}:
            raise_for_status(self.name, response.status)
        require_identity(self.name, response)
        if response.status == _OK:
            return read_whole(reply)
        answer = read_partial(reply)
        if answer is None or answer.total is None:
            return answer
        if (answer.start, answer.end) == (0, min(answer.total, FIRST_WINDOW)):
            return answer
        answer.body.close()
        return None

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
        require_identity(self.name, response)
        answer = read_partial(reply)
        if answer is None:
            raise self._without_ranges(start)
        if answer.total == self.total and answer.start == start:
            return answer
        answer.body.close()
        raise self._changed() if answer.total != self.total else self._without_ranges(start)

    def _changed(self) -> ImageError:
        return ImageError(
            f"{self.name}: was changed on the server while it was read",
            code="image-changed",
            hint="Start again; if it happens again, the servers behind the address differ.",
        )

    def _without_ranges(self, start: int) -> ImageError:
        return ImageError(
            f"{self.name}: the server does not give the bytes from {start} on",
            code="image-interrupted",
            hint="Start again, or download the image first.",
        )


def tell_of_pause(name: str, error: Exception | None, pause: float) -> None:
    """Tell why nothing comes for ``pause`` seconds."""
    tell(f"{name}: {describe(error)}; trying again in {pause:g} s")
