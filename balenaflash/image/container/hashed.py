"""An origin read once from its start, and hashed as it passes."""

from balenaflash.extent import MIB
from balenaflash.image.container.forward import ForwardReader
from balenaflash.image.container.origin import Origin
from balenaflash.image.container.running_digest import RunningDigest


class HashedOrigin:
    """The bytes of ``origin`` in their order, each read once, so that none can be another later.

    It closes the thread that hashes, and not ``origin``.
    """

    seekable = False
    is_local = False

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._position = 0
        self._forward = ForwardReader(self._take)
        self._digest = RunningDigest()

    @property
    def name(self) -> str:
        """The origin's."""
        return self._origin.name

    @property
    def size(self) -> int | None:
        """The origin's."""
        return self._origin.size

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ImageError: they cannot be read.
            ValueError: as `ForwardReader.read_at`.
        """
        return self._forward.read_at(offset, length)

    def open_file(self) -> None:
        """A program that read them by itself would not have them hashed."""

    def digest(self) -> bytes:
        """SHA-256 of all bytes from start to end; reads what is left first.

        Raises:
            ImageError: it cannot be read.
        """
        while self._take(MIB):
            pass
        return bytes.fromhex(self._digest.hexdigest())

    def close(self) -> None:
        """End the thread that hashes."""
        self._digest.close()

    def _take(self, limit: int) -> bytes:
        block = self._origin.read_at(self._position, min(limit, MIB))
        if block:
            self._position += len(block)
            self._digest.update(block)
        return block
