"""What a commit rewrites, and the image file as one."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class StoreFailedError(Exception):
    """Reading or writing failed; the state of what was being written is unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Why, as what follows the name of the store and a colon."""


class ReadBackDiffersError(Exception):
    """The medium does not hold what it accepted."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset
        """Start of the range that differs, in bytes from the start of the image."""


class Store(Protocol):
    """Bytes that are read, rewritten in place and read back; every range lies inside."""

    @property
    def size(self) -> int:
        """Bytes from start to end."""

    @property
    def alignment(self) -> int:
        """Offset and length of what is written are multiples of this, in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, or fewer where a file ends.

        Raises:
            StoreFailedError: they cannot be read.
        """

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on; after a failure each sector is old or new.

        Raises:
            StoreFailedError: not all of it was written.
        """

    def flush(self) -> None:
        """Return when all that was written would survive a loss of power.

        Raises:
            StoreFailedError: it may not.
        """

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, from the medium and not from a cache; the range has been flushed."""


class FileStore:
    """An open file; whoever opened it closes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return os.fstat(self._descriptor).st_size

    @property
    def alignment(self) -> int:
        """1: a file is written at any offset."""
        return 1

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, or fewer where the file ends."""
        blocks = []
        with _failures("read"):
            while length > 0:
                block = os.pread(self._descriptor, length, offset)
                if not block:
                    break
                blocks.append(block)
                offset += len(block)
                length -= len(block)
        return b"".join(blocks)

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on."""
        done = 0
        with _failures("written"):
            while done < len(content):
                done += os.pwrite(self._descriptor, content[done:], offset + done)

    def flush(self) -> None:
        """Return when all that was written would survive a loss of power."""
        with _failures("written"):
            os.fsync(self._descriptor)

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, after dropping from the cache what was flushed and is not mapped.

        The kernel leaves pages alone that lie only partly in the range (posix_fadvise(2)).
        """
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = -(-(offset + length) // mmap.PAGESIZE) * mmap.PAGESIZE
        with _failures("read"):
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
        return self.read(offset, length)


@contextmanager
def _failures(participle: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailedError(f"cannot be {participle}: {error.strerror}") from error
