"""An image as bytes at offsets, whatever it is stored in."""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from balenaflash.errors import ImageError

# Size in bytes of a block device: _IOR(0x12, 114, size_t), linux/fs.h and asm-generic/ioctl.h.
_BLKGETSIZE64 = 2 << 30 | struct.calcsize("@N") << 16 | 0x12 << 8 | 114

_MAGICS = {
    b"\x1f\x8b": ("gzip", "gzip -dk"),  # RFC 1952, section 2.3.1
    b"\xfd7zXZ\x00": ("xz", "xz -dk"),  # xz file format 1.2.1, section 2.1.1.1
    b"BZh": ("bzip2", "bzip2 -dk"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dk"),  # RFC 8878, section 3.1.1
    b"PK\x03\x04": ("zip", "unzip"),  # APPNOTE 6.3.10, section 4.3.7
}
"""First bytes of a container to its name and the command that unpacks it."""


class Container(StrEnum):
    """What an image is stored in."""

    RAW = "raw"
    BLOCK_DEVICE = "block-device"


class Source(Protocol):
    """Random access to the bytes of an image, read-only."""

    @property
    def name(self) -> str:
        """What to call it in messages: its path as the user gave it."""

    @property
    def size(self) -> int:
        """Bytes from start to end."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them.

        Raises:
            ImageError: the image ends before, or cannot be read.
        """

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on, without a copy in between; errors as ``read``."""


class FileSource:
    """A raw image: a regular file, or a block device opened for reading."""

    def __init__(self, path: Path, descriptor: int, container: Container, size: int) -> None:
        self.path = path
        self.container = container
        self._descriptor = descriptor
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
            raise self._cut_short(offset + length)
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; short reads are continued."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise ImageError(
                    f"{self.name}: cannot be read at byte {offset + done}: {error.strerror}",
                    code="image-unreadable",
                ) from error
            if count == 0:
                raise self._cut_short(offset + len(buffer))
            done += count

    def _cut_short(self, end: int) -> ImageError:
        return ImageError(
            f"{self.name}: ends at byte {self._size}, but bytes up to {end} are needed",
            code="image-truncated",
            hint="The file is probably an incomplete download or copy.",
        )


@contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """The raw image at ``path``, open for reading until the block ends.

    Raises:
        ImageError: there is nothing, it is not a file or block device, it is empty,
            it may not be read, or it is compressed.
    """
    descriptor = _open_for_reading(path)
    try:
        container, size = _measure(path, descriptor)
        if size == 0:
            raise ImageError(f"{path}: is empty", code="image-empty")
        _refuse_compressed(path, os.pread(descriptor, 8, 0))
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


def _refuse_compressed(path: Path, start: bytes) -> None:
    for magic, (container, command) in _MAGICS.items():
        if start.startswith(magic):
            raise ImageError(
                f"{path}: is {container}-compressed; a raw image is needed",
                code="image-compressed",
                hint=f"Unpack it first: {command} {path}",
            )
