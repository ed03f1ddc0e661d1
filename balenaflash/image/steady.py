"""An image in a file or on a block device that must not change while it is read."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.extent import MIB
from balenaflash.image.source import FileSource, RandomAccess

_SECTORS_WRITTEN = 6
"""Column of the statistics of a block device (kernel: Documentation/block/stat.rst)."""

_BLOCKS = Path("/sys/dev/block")
_HEAD_SIZE = MIB


@dataclass(frozen=True, slots=True)
class FileState:
    """What differs after a file or a block device was written to.

    Stores into memory that is mapped from a file count when the kernel writes the page back;
    on a tmpfs they leave no trace. What must be proven is hashed as well.
    """

    file: tuple[int, ...]
    """Device, inode, size, and the times of change of content and of inode."""

    sectors_written: int | None
    """Sectors written to a block device since it is there; ``None`` of a file."""

    @classmethod
    def read(cls, descriptor: int) -> Self:
        """The state of what is open as ``descriptor``."""
        status = os.fstat(descriptor)
        if stat.S_ISBLK(status.st_mode):
            return cls((status.st_rdev,), _read_sectors_written(status.st_rdev))
        if not stat.S_ISREG(status.st_mode):
            return cls((), None)  # of a pipe the times change as it is read
        return cls(
            (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            None,
        )

    def require_same(self, descriptor: int, name: str) -> None:
        """Return if what is open as ``descriptor`` is still in this state.

        Raises:
            ImageError: it was changed (``image-changed``).
        """
        if FileState.read(descriptor) != self:
            raise changed(name)


def changed(name: str) -> ImageError:
    """The error for an image that is not what it was when it was opened."""
    return ImageError(
        f"{name}: was changed while it was read",
        code="image-changed",
        hint="Wait until no other program writes to it, then start again.",
    )


def _read_sectors_written(device: int) -> int | None:
    try:
        text = (_BLOCKS / f"{os.major(device)}:{os.minor(device)}" / "stat").read_text("ascii")
    except OSError:
        return None  # it was unplugged, which reading it tells; or sysfs is not there
    return int(text.split()[_SECTORS_WRITTEN])


class SteadySource(RandomAccess):
    """A raw image that is refused at its end if it was changed since it was opened.

    Its first MiB is read once: it is looked at first, and written last, when the rest was found
    unchanged.
    """

    def __init__(self, source: FileSource, state: FileState) -> None:
        """``state`` is that of its file when it was opened."""
        self._source = source
        self._state = state
        self._head = memoryview(source.read(0, min(_HEAD_SIZE, source.size)))

    @property
    def name(self) -> str:
        """As the image below."""
        return self._source.name

    @property
    def size(self) -> int:
        """As the image below."""
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        """As the image below."""
        end = offset + length
        if 0 <= offset <= end <= len(self._head):
            return bytes(self._head[offset:end])
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """As the image below."""
        end = offset + len(buffer)
        if end <= len(self._head):
            buffer[:] = self._head[offset:end]
        else:
            self._source.readinto(offset, buffer)

    def finish(self) -> None:
        """As ``measure``."""
        self._state.require_same(self._source.descriptor, self.name)

    def measure(self, limit: int | None = None) -> int:
        """The size, as it was known before.

        Raises:
            ImageError: the image was changed since it was opened (``image-changed``).
        """
        self.finish()
        return super().measure(limit)
