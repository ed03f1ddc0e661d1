"""An image as bytes at offsets, whatever it is stored in."""

import errno
import os
import shlex
import stat
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.rereading import Rereads, read_device_size
from balenaflash.source.container.decoder import Container, FileOrigin


class Source(Protocol):
    """Random access to the bytes of an image, read-only."""

    @property
    def name(self) -> str:
        """Name for messages: the path as the user gave it."""

    @property
    def size(self) -> int | None:
        """Bytes from start to end; ``None`` for a stream whose size is known only at its end."""

    @property
    def seekable(self) -> bool:
        """True if a far place costs no more to read than a near one.

        In other sources, such as a compressed stream, everything in between is read as well.
        """

    def cost(self, offset: int) -> int | None:
        """Bytes to decode before the one at ``offset`` can be read; 0 without a decoder.

        ``None`` if that place of a stream has passed and cannot be read again.
        """

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them.

        Raises:
            ImageError: the image ends before, or cannot be read.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on, without a copy; errors as ``read``.

        An empty buffer moves a stream forward to ``offset``.
        """

    def fork(self) -> "Source | None":
        """The same image for a reader with another pace; closed with this one.

        ``None`` if the image can be read only once.
        """

    def sequential(self) -> AbstractContextManager[None]:
        """Within the block, ``readinto`` reads in ascending order and nothing twice.

        A stream need not keep what it decodes there.
        """

    def finish(self) -> None:
        """Read a stream on to its end, so that its trailer is checked.

        Raises:
            ImageError: the stream is damaged or cut short.
        """

    def measure(self, limit: int | None = None) -> int:
        """The exact size; a stream is read to its end and its trailer checked.

        Raises:
            ImageError: the stream is damaged or cut short, or holds more than ``limit`` bytes
                (``image-too-large``).
        """


class RandomAccess(Source):
    """A source that is not a stream: every place costs the same, and nothing has to be kept."""

    @property
    @abstractmethod
    def size(self) -> int: ...

    @property
    def seekable(self) -> bool:
        return True

    def cost(self, offset: int) -> int | None:  # noqa: ARG002 - any place costs the same
        return 0

    def fork(self) -> Source | None:
        return self

    def sequential(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        pass

    def measure(self, limit: int | None = None) -> int:  # noqa: ARG002 - only a stream can surprise
        return self.size


class Wrapped(Source):
    """A source as another one shows it; a subclass overrides what differs."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def size(self) -> int | None:
        return self._source.size

    @property
    def seekable(self) -> bool:
        return self._source.seekable

    def cost(self, offset: int) -> int | None:
        return self._source.cost(offset)

    def read(self, offset: int, length: int) -> bytes:
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._source.readinto(offset, buffer)

    def fork(self) -> Source | None:
        return self._source.fork()

    def sequential(self) -> AbstractContextManager[None]:
        return self._source.sequential()

    def finish(self) -> None:
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:
        return self._source.measure(limit)


class FileSource(FileOrigin, RandomAccess):
    """A raw image: a regular file, or a block device opened for reading."""

    def __init__(
        self,
        path: Path,
        descriptor: int,
        container: Container,
        size: int,
        rereads: Rereads | None = None,
    ) -> None:
        super().__init__(str(path), descriptor, size, rereads)
        self.path = path
        self.container = container

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self._cut_short(offset + length, self.size)
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            part, place = buffer[done:], offset + done
            count = self._attempt(place, partial(os.preadv, self.descriptor, [part], place))
            if count == 0:  # it was cut off since it was opened
                raise self._cut_short(offset + len(buffer), place)
            done += count

    def _cut_short(self, needed: int, end: int) -> ImageError:
        return ImageError(
            f"{self.name}: ends at byte {end}, but bytes up to {needed} are needed",
            code="image-truncated",
            hint="The file is probably an incomplete download or copy.",
        )


@contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """The bytes of the file or block device at ``path``, open for reading until the block ends.

    Raises:
        ImageError: there is nothing at ``path``, it is neither a file nor a block device, it is
            empty, or it may not be read.
    """
    try:
        # O_NONBLOCK: a FIFO without a writer would otherwise hang here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = None
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = f"Check its owner, group and mode: ls -l {shlex.quote(str(path))}"
        raise ImageError(
            f"{path}: cannot be opened: {error.strerror}", code="image-unreadable", hint=hint
        ) from error
    try:
        container, size = _measure(path, descriptor)
        if size == 0:
            raise ImageError(f"{path}: is empty", code="image-empty")
        yield FileSource(path, descriptor, container, size)
    finally:
        os.close(descriptor)


def _measure(path: Path, descriptor: int) -> tuple[Container, int]:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return Container.RAW, status.st_size
    if stat.S_ISBLK(status.st_mode):
        return Container.BLOCK_DEVICE, read_device_size(descriptor)
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a block device"
    raise ImageError(f"{path}: is {kind}, not an image", code="image-not-a-file")
