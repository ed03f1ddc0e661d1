"""An image seen with changes, or held to what it was when it was opened."""

import hashlib
import os
import stat
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Self

from balenaflash.errors import ImageError
from balenaflash.source.base import FileSource, RandomAccess, Source
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
        """The range of the image it replaces."""
        return Extent(self.offset, self.offset + len(self.data))


def in_order(patches: Iterable[Patch], image_size: int | None) -> tuple[Patch, ...]:
    """``patches`` sorted by offset.

    Raises:
        ValueError: one is empty or outside ``[0, image_size)``, if that is known, or two overlap.
            Patches are made by this program, so that is a bug and no fault of an image.
    """
    ordered = tuple(sorted(patches))
    position = 0
    for patch in ordered:
        is_outside = image_size is not None and patch.extent.end > image_size
        if not patch.data or patch.offset < position or is_outside:
            raise ValueError(f"patch of {len(patch.data)} bytes at {patch.offset} is out of place")
        position = patch.extent.end
    return ordered


class Overlay:
    """An image as it would be with some patches applied; the image itself is not touched."""

    def __init__(self, source: Source, patches: Iterable[Patch]) -> None:
        self._source = source
        self._patches = in_order(patches, source.size)

    @property
    def name(self) -> str:
        """What to call it in messages: the name of the image below."""
        return self._source.name

    @property
    def size(self) -> int | None:
        """Bytes from start to end; patches never change it."""
        return self._source.size

    @property
    def seekable(self) -> bool:
        """As the image below."""
        return self._source.seekable

    def cost(self, offset: int) -> int | None:
        """As the image below."""
        return self._source.cost(offset)

    def fork(self) -> "Overlay | None":
        """The same with a fork of the image below."""
        source = self._source.fork()
        return None if source is None else Overlay(source, self._patches)

    def sequential(self) -> AbstractContextManager[None]:
        """As the image below."""
        return self._source.sequential()

    def finish(self) -> None:
        """As the image below."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:
        """As the image below."""
        return self._source.measure(limit)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them; errors as the image's own."""
        content = bytearray(self._source.read(offset, length))
        lay_over(self._patches, offset, memoryview(content))
        return bytes(content)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; errors as the image's own."""
        self._source.readinto(offset, buffer)
        lay_over(self._patches, offset, buffer)


def lay_over(patches: Sequence[Patch], offset: int, buffer: memoryview) -> None:
    """Put ``patches``, which are `in_order`, into ``buffer``, the bytes from ``offset`` on."""
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


_BLOCK = 64 * KIB
_DIGEST_SIZE = 32
_PIECE = 16 * _BLOCK  # read at a time


class SealedSource(RandomAccess):
    """What a file or block device held when it was hashed from start to end.

    A digest of each 64 KiB is kept, 32 bytes, and whatever is read later is compared with it. So
    nobody who may write to the file can have other bytes used than those of the sum.
    """

    def __init__(self, source: FileSource) -> None:
        """Read all of ``source``.

        Raises:
            ImageError: it cannot be read.
        """
        self._source = source
        self._digests = bytearray()
        self.sha256 = self._hash_all()
        """SHA-256 of all of it."""

    @property
    def name(self) -> str:
        """As the file."""
        return self._source.name

    @property
    def size(self) -> int:
        """As the file."""
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them, and as they were hashed.

        Raises:
            ImageError: they are others (``image-changed``); or as `FileSource.read`.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            return self._source.read(offset, length)  # which says what is wrong with that
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; errors as ``read``."""
        end = offset + len(buffer)
        start = align_down(offset, _BLOCK)
        stop = min(align_up(end, _BLOCK), self.size)
        if (start, stop) == (offset, end):
            self._read_blocks(start, buffer)
        elif stop > start:
            blocks = memoryview(bytearray(stop - start))
            self._read_blocks(start, blocks)
            buffer[:] = blocks[offset - start : end - start]

    def _read_blocks(self, start: int, buffer: memoryview) -> None:
        self._source.readinto(start, buffer)
        place = start // _BLOCK * _DIGEST_SIZE
        digests = b"".join(_digests(buffer))
        if digests != self._digests[place : place + len(digests)]:
            raise changed(self.name)

    def _hash_all(self) -> bytes:
        running = RunningDigest()
        try:
            for start in range(0, self.size, _PIECE):
                piece = self._source.read(start, min(_PIECE, self.size - start))
                running.update(piece)
                self._digests += b"".join(_digests(memoryview(piece)))
            return bytes.fromhex(running.hexdigest())
        finally:
            running.close()


def _digests(blocks: memoryview) -> list[bytes]:
    # Faster than SHA-256 where the processor has no instructions for that.
    return [
        hashlib.blake2b(blocks[start : start + _BLOCK], digest_size=_DIGEST_SIZE).digest()
        for start in range(0, len(blocks), _BLOCK)
    ]


class SealedOrigin:
    """A container in a sealed file."""

    seekable = True
    is_local = True

    def __init__(self, source: SealedSource) -> None:
        self._source = source

    @property
    def name(self) -> str:
        """The file's."""
        return self._source.name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; fewer only at the end."""
        return self._source.read(offset, max(0, min(length, self.size - offset)))

    def open_file(self) -> None:
        """A program that read it by itself would read what nobody compares."""
