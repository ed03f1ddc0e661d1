"""An image as bytes at offsets, whatever it is stored in."""

import errno
import fcntl
import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.rereading import Rereads
from balenaflash.source.container.decoder import Container

# Size in bytes of a block device: _IOR(0x12, 114, size_t), linux/fs.h and asm-generic/ioctl.h.
_BLKGETSIZE64 = 2 << 30 | struct.calcsize("@N") << 16 | 0x12 << 8 | 114


class Source(Protocol):
    """Random access to the bytes of an image, read-only."""

    @property
    def name(self) -> str:
        """What to call it in messages: its path as the user gave it."""

    @property
    def size(self) -> int | None:
        """Bytes from start to end; ``None`` of a stream that does not tell before its end."""

    @property
    def seekable(self) -> bool:
        """Whether a far place costs no more to read than a near one.

        Where not, as in a compressed stream, what lies between is read as well.
        """

    def cost(self, offset: int) -> int | None:
        """Bytes to decode before the one at ``offset`` can be read; 0 where there is no decoder.

        ``None``: that place of a stream has passed and cannot be read again.
        """

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them.

        Raises:
            ImageError: the image ends before, or cannot be read.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, without a copy in between; errors as ``read``.

        An empty one brings a stream that is not as far yet to ``offset``.
        """

    def fork(self) -> "Source | None":
        """The same image for somebody who reads it at another pace; closed with this one.

        ``None`` where it can be read only once.
        """

    def sequential(self) -> AbstractContextManager[None]:
        """Within the block, what ``readinto`` reads in ascending order is not read again.

        A stream then need not keep it.
        """

    def finish(self) -> None:
        """Read on to the end of a stream, to have what it ends with checked.

        Raises:
            ImageError: it is damaged or cut short.
        """

    def measure(self, limit: int | None = None) -> int:
        """The exact size, after reading to the end of a stream and checking what it ends with.

        Raises:
            ImageError: the stream is damaged or cut short; or more than ``limit`` bytes
                come out of it (``image-too-large``).
        """


class RandomAccess(ABC):
    """What is the same of every source that is no stream."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call it in messages."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes from start to end."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """As `Source.read`."""

    @abstractmethod
    def readinto(self, offset: int, buffer: memoryview) -> None:
        """As `Source.readinto`."""

    @property
    def seekable(self) -> bool:
        """True."""
        return True

    def cost(self, offset: int) -> int | None:  # noqa: ARG002 - any place costs the same
        """Nothing."""
        return 0

    def fork(self) -> Source | None:
        """Itself: reading leaves nothing behind."""
        return self

    def sequential(self) -> AbstractContextManager[None]:
        """Nothing to do: nothing is kept."""
        return nullcontext()

    def finish(self) -> None:  # noqa: B027 - not abstract: there is nothing to do
        """There is no end to be read."""

    def measure(self, limit: int | None = None) -> int:  # noqa: ARG002 - only a stream can surprise
        """The size, as it was known before."""
        return self.size


class FileSource(RandomAccess):
    """A raw image: a regular file, or a block device opened for reading."""

    def __init__(self, path: Path, descriptor: int, container: Container, size: int) -> None:
        self.path = path
        self.container = container
        self.descriptor = descriptor
        self.rereads = Rereads()
        self._size = size

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return str(self.path)

    @property
    def size(self) -> int:
        """Bytes from start to end, as they were at opening."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them."""
        if offset < 0 or length < 0 or offset + length > self._size:
            raise self._cut_short(offset + length, self._size)
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; short reads are continued."""
        done = 0
        while done < len(buffer):
            try:
                part, place = buffer[done:], offset + done
                count = self.rereads.read(partial(os.preadv, self.descriptor, [part], place))
            except OSError as error:
                raise ImageError(
                    f"{self.name}: cannot be read at byte {offset + done}: {error.strerror}",
                    code="image-unreadable",
                ) from error
            if count == 0:  # it was cut off since it was opened
                raise self._cut_short(offset + len(buffer), offset + done)
            done += count

    def _cut_short(self, needed: int, end: int) -> ImageError:
        return ImageError(
            f"{self.name}: ends at byte {end}, but bytes up to {needed} are needed",
            code="image-truncated",
            hint="The file is probably an incomplete download or copy.",
        )


@contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """What lies at ``path``, byte for byte, open for reading until the block ends.

    Raises:
        ImageError: there is nothing, it is not a file or block device, it is empty, or it may not
            be read.
    """
    descriptor = _open_for_reading(path)
    try:
        container, size = _measure(path, descriptor)
        if size == 0:
            raise ImageError(f"{path}: is empty", code="image-empty")
        yield FileSource(path, descriptor, container, size)
    finally:
        os.close(descriptor)


def _open_for_reading(path: Path) -> int:
    try:
        # O_NONBLOCK: a FIFO without a writer would otherwise hang here.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        hint = None
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = "Reading it needs another user, group or mode; see ls -l."
        raise ImageError(
            f"{path}: cannot be opened: {error.strerror}", code="image-unreadable", hint=hint
        ) from error


def _measure(path: Path, descriptor: int) -> tuple[Container, int]:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return Container.RAW, status.st_size
    if stat.S_ISBLK(status.st_mode):
        answer = fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8))
        return Container.BLOCK_DEVICE, int(struct.unpack("=Q", answer)[0])
    kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a block device"
    raise ImageError(f"{path}: is {kind}, not an image", code="image-not-a-file")
