"""SHA-256 sums that an image must have, computed as its bytes pass."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import BoundedSemaphore, Thread
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Decoder, Origin
from balenaflash.source.pipe import ForwardReader
from balenaflash.units import MIB


class Check(Protocol):
    """A decision by the SHA-256 of an image, or of the file or container it is stored in."""

    def is_met_by_stored(self, stored: bytes) -> bool:
        """True if the SHA-256 of the file or container is enough, whatever is in it."""

    def require(self, name: str, image: bytes, stored: bytes) -> None:
        """Return if the SHA-256 of the image, and of what it is stored in, are right.

        Raises:
            ImageError: they are not; the image is called ``name``.
        """


@dataclass(frozen=True, slots=True)
class Sha256Check:
    """A published SHA-256: of the image, or of the file that it was downloaded as."""

    expected: bytes

    def is_met_by_stored(self, stored: bytes) -> bool:
        return stored == self.expected

    def require(self, name: str, image: bytes, stored: bytes) -> None:
        """Return if ``expected`` is one of the two.

        Raises:
            ImageError: it is neither (``sha256-differs``).
        """
        if self.expected in {image, stored}:
            return
        of_file = "" if image == stored else f" (of the file: {stored.hex()})"
        raise ImageError(
            f"{name}: its SHA-256 is {image.hex()}{of_file}, not {self.expected.hex()}",
            code="sha256-differs",
            hint="Download it again. The sum may be that of the file or of the image in it.",
        )


class CheckedDecoder:
    """A decoder from the start of an image that hashes its bytes, and checks the sum at the end.

    ``stored`` returns the SHA-256 of the container once all of it was decoded.
    """

    def __init__(
        self, name: str, decoder: Decoder, checks: Sequence[Check], stored: Callable[[], bytes]
    ) -> None:
        self._name = name
        self._decoder = decoder
        self._checks = checks
        self._stored = stored
        self._digest = hashlib.sha256()

    def readinto(self, buffer: memoryview) -> int:
        count = self._decoder.readinto(buffer)
        if count:
            self._digest.update(buffer[:count])
        else:
            image, stored = self._digest.digest(), self._stored()
            for check in self._checks:
                check.require(self._name, image, stored)
        return count

    def close(self) -> None:
        self._decoder.close()


_WAITING = 8
"""Blocks that may wait to be hashed; with more, `RunningDigest.update` waits."""


class RunningDigest:
    """SHA-256 over blocks in their order, computed by a thread."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._blocks: SimpleQueue[bytes | bytearray | None] = SimpleQueue()
        self._room = BoundedSemaphore(_WAITING)
        self._thread = Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def update(self, block: bytes | bytearray) -> None:
        """Hash ``block`` after all before it; wait while too many are in line."""
        self._room.acquire()
        self._blocks.put(block)

    def digest(self) -> bytes:
        """The digest of all blocks; nothing can follow."""
        self.close()
        return self._hash.digest()

    def close(self) -> None:
        """Hash the blocks in line and end the thread; a second call does nothing."""
        if self._thread.is_alive():
            self._blocks.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (block := self._blocks.get()) is not None:
            self._hash.update(block)
            self._room.release()


class HashedOrigin:
    """The bytes of ``origin`` in their order, each read once, so that none can change later.

    Closing it ends the thread that hashes, and leaves ``origin`` open.
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
        return self._origin.name

    @property
    def size(self) -> int | None:
        return self._origin.size

    def read_at(self, offset: int, length: int) -> bytes:
        return self._forward.read_at(offset, length)

    def open_file(self) -> None:
        """A program that reads the file itself would not have its bytes hashed."""

    def digest(self) -> bytes:
        """SHA-256 of all bytes from start to end; what is left is read first.

        Raises:
            ImageError: it cannot be read.
        """
        while self._take(MIB):
            pass
        return self._digest.digest()

    def close(self) -> None:
        self._digest.close()

    def _take(self, limit: int) -> bytes:
        block = self._origin.read_at(self._position, min(limit, MIB))
        if block:
            self._position += len(block)
            self._digest.update(block)
        return block
