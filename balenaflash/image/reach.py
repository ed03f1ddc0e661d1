"""A stream, read at any place for as long as that is bearable."""

from contextlib import AbstractContextManager

from balenaflash.image.source import Source


class OutOfReachError(Exception):
    """To read on, more of the stream would have to be decoded than was allowed."""


class WithinReach:
    """An image that any place is read of until too much of a stream was decoded for it.

    ``read`` and ``readinto`` raise `OutOfReachError` then.
    """

    seekable = True

    def __init__(self, source: Source, limit: int) -> None:
        """Decode at most ``limit`` bytes of ``source`` beyond what was decoded before."""
        self._source = source
        self._left = limit

    @property
    def name(self) -> str:
        """As the image below."""
        return self._source.name

    @property
    def size(self) -> int | None:
        """As the image below."""
        return self._source.size

    def cost(self, offset: int) -> int | None:
        """As the image below."""
        return self._source.cost(offset)

    def read(self, offset: int, length: int) -> bytes:
        """As the image below."""
        self._spend(offset)
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """As the image below."""
        self._spend(offset)
        self._source.readinto(offset, buffer)

    def fork(self) -> Source | None:
        """As the image below."""
        return self._source.fork()

    def sequential(self) -> AbstractContextManager[None]:
        """As the image below."""
        return self._source.sequential()

    def finish(self) -> None:
        """As the image below."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:
        """As the image below."""
        return self._source.measure(limit)

    def _spend(self, offset: int) -> None:
        cost = self._source.cost(offset)
        if cost is None or cost > self._left:
            raise OutOfReachError
        self._left -= cost
