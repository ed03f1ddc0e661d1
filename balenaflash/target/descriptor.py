"""Writing through a descriptor: what disks and files have in common."""

import mmap
import os
import threading
from abc import ABC, abstractmethod
from functools import partial

from balenaflash.errors import WriteError
from balenaflash.extent import MIB
from balenaflash.rereading import Rereads

# mmap gives zeroed pages, aligned as O_DIRECT wants them.
_ZEROS = memoryview(mmap.mmap(-1, MIB))


class DescriptorMedium(ABC):
    """Something open for writing, of a known size."""

    def __init__(self, name: str, descriptor: int, size: int) -> None:
        self._name = name
        self._descriptor = descriptor
        self._size = size
        self._written = 0
        self._counting = threading.Lock()
        self._flush_error: WriteError | None = None
        self.rereads = Rereads()

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes from start to end, as they were at opening."""
        return self._size

    @property
    def capacity(self) -> int:
        """Bytes that it can hold."""
        return self._size

    def write(self, offset: int, buffer: memoryview) -> None:
        """Write all of ``buffer`` at ``offset``; short writes are continued."""
        done = 0
        while done < len(buffer):
            try:
                count = os.pwrite(self._descriptor, buffer[done:], offset + done)
            except OSError as error:
                raise self._write_error(f"writing at byte {offset + done}", error) from error
            done += count
            with self._counting:
                self._written += count

    def zero(self, offset: int, length: int) -> None:
        """Write zeros to the range."""
        end = offset + length
        while offset < end:
            count = min(end - offset, len(_ZEROS))
            self.write(offset, _ZEROS[:count])
            offset += count

    def flush(self) -> None:
        """Return when everything written is on the medium, past its own cache too.

        Direct I/O alone does not do that: what it wrote may be lost with the power.
        """
        if self._flush_error is not None:
            # The kernel tells a lost write once per descriptor: a second fsync would succeed.
            raise self._flush_error
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._flush_error = self._write_error("flushing", error)
            raise self._flush_error from error

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; short reads are continued, a failed one repeated."""
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
        """What to raise when ``action`` failed."""

    @abstractmethod
    def _read_error(self, offset: int, error: OSError | None) -> WriteError:
        """What to raise when reading at ``offset`` failed, or ``None``: gave nothing."""
