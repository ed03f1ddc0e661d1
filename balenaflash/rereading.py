"""The size of a disk, the reads of it that are repeated once, and the warnings about them.

With a loose contact, or a reader that overheats, a read fails now and then and succeeds the next
time. Only two failures in a row are a failure of the medium.
"""

import errno
import fcntl
import struct
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

_PASSING = frozenset(
    {
        errno.EIO,
        # A bad sector, a transfer whose checksum was wrong, a reader that lost its card for a
        # moment: block/blk-core.c of Linux, BLK_STS_MEDIUM, _PROTECTION, _TARGET.
        errno.ENODATA,
        errno.EILSEQ,
        errno.EREMOTEIO,
    }
)

_Read = TypeVar("_Read")

# linux/fs.h, with the direction of asm-generic/ioctl.h: x86, Arm, RISC-V, s390. It is declared
# with size_t, and answers 64 bits on all machines.
_BLKGETSIZE64 = 2 << 30 | struct.calcsize("@N") << 16 | 0x12 << 8 | 114


def read_device_size(descriptor: int) -> int:
    """The size in bytes of an open block device; 0 after its medium has gone.

    Raises:
        OSError: it is not a block device, or was unplugged.
    """
    answer = fcntl.ioctl(descriptor, _BLKGETSIZE64, bytes(8))
    return int.from_bytes(answer, sys.byteorder)


class Rereads:
    """Counts of the reads of a disk that were repeated."""

    def __init__(self) -> None:
        self.failed = 0
        """Reads that failed, and succeeded the second time."""

        self.differing = 0
        """Reads that returned other content the second time."""

        self._counting = threading.Lock()

    def read(self, read: Callable[[], _Read]) -> _Read:
        """The result of ``read``, which is repeated once after an error that may pass.

        Raises:
            OSError: it failed twice, or the error is one that does not pass.
        """
        try:
            return read()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        found = read()
        with self._counting:
            self.failed += 1
        return found

    def read_twice(self, read: Callable[[], bytes]) -> bytes | None:
        """The content that two of three attempts return; ``None`` if all three differ."""
        first, second = read(), read()
        if first == second:
            return first
        with self._counting:
            self.differing += 1
        third = read()
        return third if third in {first, second} else None

    def warnings(self, name: str) -> tuple[str, ...]:
        """Warnings about the disk ``name``, one for each kind of repeated read."""
        end = "the reader or the cable is not reliable"
        found = []
        if self.failed:
            found.append(
                f"{name}: {_reads(self.failed)} failed, and succeeded when repeated: {end}."
            )
        if self.differing:
            found.append(
                f"{name}: {_reads(self.differing)} returned other content when repeated: {end}."
            )
        return tuple(found)


def _reads(count: int) -> str:
    return "1 read" if count == 1 else f"{count} reads"
