"""One image on a web server: asked for the first time, and again from some byte on."""

from collections.abc import Sequence
from threading import Event

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.container.http_answer import (
    Answer,
    Version,
    content_length,
    read_partial,
    read_whole,
    require_identity,
)
from balenaflash.image.container.http_client import Client
from balenaflash.image.container.http_connection import Reply
from balenaflash.image.container.http_failures import (
    BROKEN,
    BusyError,
    describe,
    interrupted,
    raise_for_status,
    unreachable,
)
from balenaflash.image.container.location import Url
from balenaflash.waiting import tell

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
