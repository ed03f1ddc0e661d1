"""An image seen with changes, or held to what it was when it was opened."""

import hashlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.source.base import FileSource, Source, Wrapped
from balenaflash.source.sums import RunningDigest
from balenaflash.units import KIB, MIB, Extent, align_down, align_up


@dataclass(frozen=True, slots=True, order=True)
class Patch:
    """Bytes that replace as many bytes of an image."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    data: bytes
    """The new bytes; never empty."""

    @property
    def extent(self) -> Extent:
        """Range of the image that is replaced."""
        return Extent(self.offset, self.offset + len(self.data))


def in_order(patches: Iterable[Patch], image_size: int | None) -> tuple[Patch, ...]:
    """``patches`` sorted by offset.

    Raises:
        ValueError: one is empty or outside ``[0, image_size)``, if that is known, or two overlap.
            Patches are made by this program, so that is a bug, not a fault of an image.
    """
    ordered = tuple(sorted(patches))
    position = 0
    for patch in ordered:
        is_outside = image_size is not None and patch.extent.end > image_size
        if not patch.data or patch.offset < position or is_outside:
            raise ValueError(f"patch of {len(patch.data)} bytes at {patch.offset} is out of place")
        position = patch.extent.end
    return ordered


class Overlay(Wrapped):
    """An image as it would be with some patches applied; the image itself is not touched."""

    def __init__(self, source: Source, patches: Iterable[Patch]) -> None:
        super().__init__(source)
        self._patches = in_order(patches, source.size)

    def fork(self) -> Source | None:
        source = self._source.fork()
        return None if source is None else Overlay(source, self._patches)

    def read(self, offset: int, length: int) -> bytes:
        content = bytearray(self._source.read(offset, length))
        lay_over(self._patches, offset, memoryview(content))
        return bytes(content)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._source.readinto(offset, buffer)
        lay_over(self._patches, offset, buffer)


def lay_over(patches: Sequence[Patch], offset: int, buffer: memoryview) -> None:
    """Write ``patches``, which are `in_order`, into ``buffer``, the image from ``offset`` on."""
    end = offset + len(buffer)
    # The patch before the first one that starts after `offset` may reach into the range.
    first = max(0, bisect_right(patches, offset, key=attrgetter("offset")) - 1)
    for index in range(first, len(patches)):
        patch = patches[index]
        if patch.offset >= end:
            break
        start, stop = max(patch.offset, offset), min(patch.extent.end, end)
        if start < stop:
            new = memoryview(patch.data)[start - patch.offset : stop - patch.offset]
            buffer[start - offset : stop - offset] = new


_SECTORS_WRITTEN = 6
"""Column of the statistics of a block device (kernel: Documentation/block/stat.rst)."""

_BLOCKS = Path("/sys/dev/block")
_HEAD_SIZE = MIB


@dataclass(frozen=True, slots=True)
class FileState:
    """Status of a file or block device that differs after something was written to it.

    Stores into memory that is mapped from a file count when the kernel writes the page back. On
    a tmpfs they leave no trace, so where proof is needed the content is hashed as well.
    """

    file: tuple[int, ...]
    """Device, inode, size, and the times at which content and inode were changed."""

    sectors_written: int | None
    """Sectors written to a block device since it was attached; ``None`` for a file."""

    @classmethod
    def read(cls, descriptor: int) -> Self:
        """The state of the open ``descriptor``; always the same for a pipe."""
        status = os.fstat(descriptor)
        if stat.S_ISBLK(status.st_mode):
            return cls((status.st_rdev,), _read_sectors_written(status.st_rdev))
        if not stat.S_ISREG(status.st_mode):
            return cls((), None)  # the times of a pipe change as it is read
        return cls(
            (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            None,
        )

    def require_same(self, descriptor: int, name: str) -> None:
        """Return if the open ``descriptor`` is still in this state.

        Raises:
            ImageError: the file was changed (``image-changed``).
        """
        if FileState.read(descriptor) != self:
            raise changed(name)


def changed(name: str) -> ImageError:
    """The error for an image that was changed since it was opened."""
    return ImageError(
        f"{name}: was changed while it was read",
        code="image-changed",
        hint="Wait until no other program writes to it, then start again.",
    )


def _read_sectors_written(device: int) -> int | None:
    try:
        text = (_BLOCKS / f"{os.major(device)}:{os.minor(device)}" / "stat").read_text("ascii")
    except OSError:
        return None  # it was unplugged, which reading it reports; or sysfs is not there
    return int(text.split()[_SECTORS_WRITTEN])


class SteadySource(FileSource):
    """A raw image that is refused at its end if it was changed since it was opened.

    Its first MiB is read once: it is examined first, and written last, after the rest was found
    unchanged.
    """

    def __init__(self, source: FileSource, state: FileState) -> None:
        """``state`` is that of the file when it was opened."""
        super().__init__(
            source.path, source.descriptor, source.container, source.size, source.rereads
        )
        self._state = state
        self._head = memoryview(source.read(0, min(_HEAD_SIZE, source.size)))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        if end <= len(self._head):
            buffer[:] = self._head[offset:end]
        else:
            super().readinto(offset, buffer)

    def finish(self) -> None:
        """Return if the image was not changed since it was opened.

        Raises:
            ImageError: it was (``image-changed``).
        """
        self._state.require_same(self.descriptor, self.name)

    def measure(self, limit: int | None = None) -> int:
        self.finish()
        return super().measure(limit)


_BLOCK = 64 * KIB
_DIGEST_SIZE = 32
_PIECE = 16 * _BLOCK  # read at a time


class SealedSource(FileSource):
    """The content of a file or block device as it was hashed from start to end.

    A digest of each 64 KiB is kept, 32 bytes, and every later read is compared with it. So a
    program that may write to the file cannot make other bytes be used than those of the sum.
    It is an origin as well, for a container in such a file.
    """

    def __init__(self, source: FileSource) -> None:
        """Read all of ``source``.

        Raises:
            ImageError: it cannot be read.
        """
        super().__init__(
            source.path, source.descriptor, source.container, source.size, source.rereads
        )
        self._digests = bytearray()
        self.sha256 = self._hash_all()
        """SHA-256 of all of it."""

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, with the bytes that were hashed.

        Raises:
            ImageError: they were changed (``image-changed``), or cannot be read.
        """
        end = offset + len(buffer)
        start = align_down(offset, _BLOCK)
        stop = min(align_up(end, _BLOCK), self.size)
        if (start, stop) == (offset, end):
            self._read_blocks(start, buffer)
        elif stop > start:
            blocks = memoryview(bytearray(stop - start))
            self._read_blocks(start, blocks)
            buffer[:] = blocks[offset - start : end - start]

    def read_at(self, offset: int, length: int) -> bytes:
        return self.read(offset, max(0, min(length, self.size - offset)))

    def open_file(self) -> None:
        """A program that reads the file itself would read what is not compared."""

    def _read_blocks(self, start: int, buffer: memoryview) -> None:
        super().readinto(start, buffer)
        place = start // _BLOCK * _DIGEST_SIZE
        digests = _digests(buffer)
        if digests != self._digests[place : place + len(digests)]:
            raise changed(self.name)

    def _hash_all(self) -> bytes:
        running = RunningDigest()
        try:
            for start in range(0, self.size, _PIECE):
                piece = bytearray(min(_PIECE, self.size - start))
                super().readinto(start, memoryview(piece))
                running.update(piece)
                self._digests += _digests(memoryview(piece))
            return running.digest()
        finally:
            running.close()


def _digests(blocks: memoryview) -> bytes:
    """The digests of ``blocks``, one after another."""
    # BLAKE2: faster than SHA-256 where the processor has no instructions for that.
    return b"".join(
        hashlib.blake2b(blocks[start : start + _BLOCK], digest_size=_DIGEST_SIZE).digest()
        for start in range(0, len(blocks), _BLOCK)
    )
