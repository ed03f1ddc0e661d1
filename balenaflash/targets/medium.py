"""Media that are written and then read back, and the common part of disks and files."""

import errno
import mmap
import os
import threading
from abc import ABC, abstractmethod
from enum import Enum, auto
from functools import partial
from typing import Protocol, Self

from balenaflash.errors import WriteError
from balenaflash.rereading import Rereads
from balenaflash.units import MIB, align_down, align_up


class Begun(Enum):
    """The progress of writing an image at the moment when it ended early."""

    NOTHING = auto()
    """Nothing was written."""

    FIRST_WRITE = auto()
    """The first write, which zeroes the start, failed."""

    START_ZEROED = auto()
    PART = auto()
    """Part of the image was written; the start is zeroed."""


class Medium(Protocol):
    """An open target.

    Offsets are in bytes from its start. Offsets and lengths are multiples of ``alignment``, and the
    memory of buffers starts at a page, as that of ``mmap`` does. If the last chunk of an image does
    not fill a sector, the caller pads it with zeros: a device cannot be written in smaller units.
    """

    @property
    def name(self) -> str:
        """Name for messages: the node, or the path as the user gave it."""

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""

    @property
    def capacity(self) -> int:
        """Bytes that it can hold: its size; for a file, which grows, the room for it."""

    @property
    def alignment(self) -> int:
        """The unit of reading and writing in bytes: the logical sector; 1 for a file."""

    @property
    def was_emptied(self) -> bool:
        """True if opening it discarded its old content."""

    @property
    def rereads(self) -> Rereads:
        """Counts of repeated reads."""

    def describe_unfinished(self, begun: Begun) -> str:
        """Its state when writing ends early, as the end of a sentence."""

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``.

        Raises:
            WriteError: with code ``write-failed``. The content of the range is undefined.
        """

    def zero(self, offset: int, length: int) -> None:
        """Fill the range with zeros, if possible without sending them to the medium.

        Raises:
            WriteError: as ``write``.
        """

    def flush(self) -> None:
        """Return when everything written is on the medium, and in no cache, not even its own.

        Raises:
            WriteError: with code ``write-failed``. Anything written since the last flush may be
                lost; further flushes fail too.
        """

    def begin_read_back(self) -> None:
        """Flush, and from now on read from the medium, not from the page cache.

        Raises:
            WriteError: as ``flush``.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on. A failed read is repeated once.

        Raises:
            WriteError: with code ``read-back-failed``: the same read failed twice, or the medium
                ends before.
        """


# mmap returns zeroed pages, aligned as O_DIRECT needs them.
_ZEROS = memoryview(mmap.mmap(-1, MIB))


class DescriptorMedium(ABC):
    """A medium that is read and written by a file descriptor."""

    def __init__(self, name: str, descriptor: int, size: int) -> None:
        self.name = name
        self.size = size
        self._descriptor = descriptor
        self._flush_error: WriteError | None = None
        self.rereads = Rereads()

    @property
    def capacity(self) -> int:
        return self.size

    def write(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.pwrite(self._descriptor, buffer[done:], offset + done)
            except OSError as error:
                raise self._write_error(f"writing at byte {offset + done}", error) from error
            done += count

    def zero(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            count = min(end - offset, len(_ZEROS))
            self.write(offset, _ZEROS[:count])
            offset += count

    def flush(self) -> None:
        # Also after direct I/O: without it, the cache of the medium may be lost with the power.
        if self._flush_error is not None:
            # The kernel reports a lost write once per descriptor: a second fsync would succeed.
            raise self._flush_error
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._flush_error = self._write_error("flushing", error)
            raise self._flush_error from error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self.rereads.read(partial(self._read_some, offset + done, buffer[done:]))
            except OSError as error:
                raise self._read_error(offset + done, error) from error
            if count == 0:
                raise self._read_error(offset + done, None)
            done += count

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self._descriptor, [buffer], offset)

    @abstractmethod
    def _write_error(self, action: str, error: OSError) -> WriteError:
        """The error for an ``action`` that failed."""

    @abstractmethod
    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        """The error for a read at ``offset`` that failed, or without ``error`` read nothing."""


_ALIGNMENT = 4096  # bytes; a multiple of what any filesystem asks for offsets and lengths
_BUFFER_SIZE = 4 * MIB

_UNSUPPORTED = frozenset(
    {
        errno.EINVAL,  # the filesystem has no direct I/O: open(2), or some only at the first read
        errno.EOPNOTSUPP,  # the same from a FUSE filesystem
        errno.ENOENT,  # /proc is not mounted
        errno.EACCES,  # the mode of the file does not allow to open it again
    }
)


class DirectReader:
    """A second descriptor of an open file, read with ``O_DIRECT`` through aligned memory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_SIZE))  # starts at a page
        self._lock = threading.Lock()  # several threads read, and there is one buffer

    @classmethod
    def open(cls, descriptor: int) -> Self | None:
        """A reader of the file open as ``descriptor``; ``None`` if it cannot be read directly.

        It is opened again through ``/proc/self/fd``, so it may have been renamed.
        """
        try:
            direct = os.open(
                f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
            )
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise
        reader = cls(direct)
        try:
            reader.read_some(0, memoryview(bytearray(1)))
        except OSError as error:
            reader.close()
            if error.errno in _UNSUPPORTED:
                return None
            raise
        return reader

    def read_some(self, offset: int, buffer: memoryview) -> int:
        """Read into the start of ``buffer``; return the number of bytes, 0 at the end."""
        start = align_down(offset, _ALIGNMENT)
        end = align_up(offset + len(buffer), _ALIGNMENT)
        length = min(end - start, _BUFFER_SIZE)
        with self._lock:
            count = os.preadv(self._descriptor, [self._buffer[:length]], start)
            # The last block of a file is shorter.
            found = self._buffer[offset - start : count][: len(buffer)]
            buffer[: len(found)] = found
            return len(found)

    def close(self) -> None:
        """Close the second descriptor; the first one stays open."""
        os.close(self._descriptor)


_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM})

_SENTENCES = {
    errno.ENOSPC: "there is no room left",
    errno.EFBIG: "the filesystem allows no file of this size",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the medium reports an error (Input/output error)",
    # A bad sector of a SCSI or USB disk, block/blk-core.c: BLK_STS_MEDIUM.
    errno.ENODATA: "the medium reports an unreadable sector",
    errno.EREMOTEIO: "the medium reports an error (Remote I/O error)",
    errno.ETIMEDOUT: "the medium does not answer",
    errno.EPERM: "it is write-protected",
    errno.EROFS: "it is write-protected",
}


def describe_failure(error: OSError, *, is_gone: bool = False) -> str:
    """The reason for a failure in words, such as "there is no room left".

    ``is_gone`` is set if the device is known to have vanished. An unplugged disk has size 0, and a
    write past its end fails as if it were full.
    """
    if is_gone or error.errno in _GONE:
        return "the device has vanished; was it unplugged?"
    return _SENTENCES.get(error.errno or 0, error.strerror or str(error))
