"""An image whose SHA-256 is known beforehand and compared as the image is read."""

import hashlib
from contextlib import AbstractContextManager

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.source import Source

_PIECE = MIB


class CheckedSource:
    """A stream that ends in an error where its bytes are not those that were promised.

    They are hashed in their order, whatever order they are asked for in: what is skipped is read,
    too. So the sum is known when the end is reached, and not before.
    """

    def __init__(self, source: Source, expected: str) -> None:
        """``expected`` is the SHA-256 of all bytes, 64 hexadecimal digits in lower case."""
        self._source = source
        self._expected = expected
        self._digest = hashlib.sha256()
        self._position = 0
        self._is_checked = False

    @property
    def name(self) -> str:
        """As the image below."""
        return self._source.name

    @property
    def size(self) -> int | None:
        """As the image below."""
        return self._source.size

    @property
    def seekable(self) -> bool:
        """As the image below."""
        return self._source.seekable

    def read(self, offset: int, length: int) -> bytes:
        """As the image below."""
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, and hash what was not hashed yet."""
        self._hash_up_to(offset)
        self._source.readinto(offset, buffer)
        done = self._position - offset
        if done < len(buffer):
            self._digest.update(buffer[done:])
            self._position = offset + len(buffer)

    def fork(self) -> Source | None:
        """The same over a fork of the image below: whoever has it must learn of it, too."""
        source = self._source.fork()
        return None if source is None else CheckedSource(source, self._expected)

    def sequential(self) -> AbstractContextManager[None]:
        """As the image below."""
        return self._source.sequential()

    def finish(self) -> None:
        """As ``measure``."""
        self.measure()

    def measure(self, limit: int | None = None) -> int:
        """As the image below, and compare the sum.

        Raises:
            ImageError: it is another one; or as the image below.
        """
        size = self._source.measure(limit)
        if not self._is_checked:
            self._hash_up_to(size)
            if self._digest.hexdigest() != self._expected:
                raise wrong_sum(self.name, self._digest.hexdigest(), self._expected)
            self._is_checked = True
        return size

    def _hash_up_to(self, end: int) -> None:
        buffer = memoryview(bytearray(_PIECE))
        while self._position < end:
            piece = buffer[: end - self._position]
            self._source.readinto(self._position, piece)
            self._digest.update(piece)
            self._position += len(piece)


def wrong_sum(name: str, found: str, expected: str) -> ImageError:
    """The error for an image that is not the one promised."""
    return ImageError(
        f"{name}: its SHA-256 is {found}, not {expected}",
        code="sha256-differs",
        hint="Fetch it again; the sum may be of the file as downloaded or of the image in it.",
    )
