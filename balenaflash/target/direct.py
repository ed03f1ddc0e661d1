"""Reading a file past the page cache, at any offset."""

import errno
import mmap
import os
import threading
from typing import Self

from balenaflash.extent import MIB

_ALIGNMENT = 4096  # bytes; a multiple of what any filesystem asks for offsets and lengths
_BUFFER_SIZE = 4 * MIB

_UNSUPPORTED = frozenset(
    {
        errno.EINVAL,  # the filesystem has no direct I/O: open(2), or some only at the first read
        errno.EOPNOTSUPP,  # the same from a FUSE filesystem
        errno.ENOENT,  # /proc is not mounted
        errno.EACCES,  # the mode of the file lets nobody open it again
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
        """A reader of the file that is open as ``descriptor``; ``None`` where there is none.

        The file is found through ``/proc/self/fd``, so it may have been renamed.
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
        """Read into the start of ``buffer``; the number of bytes, 0 at the end of the file."""
        start = offset - offset % _ALIGNMENT
        end = -(-(offset + len(buffer)) // _ALIGNMENT) * _ALIGNMENT
        length = min(end - start, _BUFFER_SIZE)
        with self._lock:
            count = os.preadv(self._descriptor, [self._buffer[:length]], start)
            # The last block of a file is shorter.
            found = self._buffer[offset - start : count][: len(buffer)]
            buffer[: len(found)] = found
            return len(found)

    def close(self) -> None:
        """Close the second descriptor; the first stays open."""
        os.close(self._descriptor)
