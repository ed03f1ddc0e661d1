"""Containers, the origin of their bytes, and the interface of every decoder."""

import os
from enum import StrEnum
from functools import partial
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.rereading import Rereads


class Origin(Protocol):
    """Where the bytes of a container come from, read-only and as stored."""

    @property
    def name(self) -> str:
        """What to call it in messages: its path as the user gave it."""

    @property
    def size(self) -> int | None:
        """Bytes from start to end; ``None`` where that is known only at the end."""

    @property
    def seekable(self) -> bool:
        """Whether any bytes may be asked for, again and in any order.

        Where not, each offset asked for is the end of what was read before.
        """

    @property
    def is_local(self) -> bool:
        """Whether a few bytes here and there cost next to nothing: a request each elsewhere."""

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on: ``length`` of them, fewer only where the end comes first.

        Called by one thread at a time.

        Raises:
            ImageError: they cannot be read.
        """

    def open_file(self) -> int | None:
        """A descriptor to read them with, at the first byte, for a program; the caller closes it.

        ``None`` where they are in no file.
        """


class FileOrigin:
    """A container in a regular file or on a block device."""

    def __init__(
        self, name: str, descriptor: int, size: int, rereads: Rereads | None = None
    ) -> None:
        self._rereads = rereads or Rereads()
        self._name = name
        self._descriptor = descriptor
        self._size = size

    @property
    def name(self) -> str:
        """The path as the user gave it."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes from start to end, as they were at opening."""
        return self._size

    @property
    def seekable(self) -> bool:
        """Always: any bytes may be asked for."""
        return True

    @property
    def is_local(self) -> bool:
        """Always."""
        return True

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; short reads are continued."""
        wanted = max(0, min(length, self._size - offset))
        data = self._pread(offset, wanted)
        while len(data) < wanted:
            more = self._pread(offset + len(data), wanted - len(data))
            if not more:
                break
            data += more
        return data

    def open_file(self) -> int | None:
        """The file opened once more; it may have lost its name. ``None`` without /proc."""
        try:
            return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def _pread(self, offset: int, length: int) -> bytes:
        try:
            return self._rereads.read(partial(os.pread, self._descriptor, length, offset))
        except OSError as error:
            raise ImageError(
                f"{self.name}: cannot be read at byte {offset}: {error.strerror}",
                code="image-unreadable",
            ) from error


class Peeked:
    """An origin whose first bytes may be looked at before it is read from the start."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._head = b""

    @property
    def name(self) -> str:
        """The origin's."""
        return self._origin.name

    @property
    def size(self) -> int | None:
        """The origin's."""
        return self._origin.size

    @property
    def seekable(self) -> bool:
        """The origin's."""
        return self._origin.seekable

    @property
    def is_local(self) -> bool:
        """The origin's."""
        return self._origin.is_local

    def peek(self, length: int) -> bytes:
        """The first ``length`` bytes, fewer where there are not that many; they are kept."""
        if length > len(self._head):
            self._head += self._origin.read_at(len(self._head), length - len(self._head))
        return self._head[:length]

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; those looked at before are not read again."""
        head = self._head[offset : offset + length]
        if len(head) == length:
            return head
        return head + self._origin.read_at(offset + len(head), length - len(head))

    def open_file(self) -> int | None:
        """The origin's."""
        return self._origin.open_file()


class Container(StrEnum):
    """What an image is stored in."""

    RAW = "raw"
    BLOCK_DEVICE = "block-device"
    GZIP = "gzip"
    XZ = "xz"
    BZIP2 = "bzip2"
    ZSTD = "zstd"
    ZIP = "zip"

    @property
    def is_compressed(self) -> bool:
        """Whether the image has to be got out of it."""
        return self not in {Container.RAW, Container.BLOCK_DEVICE}


DOWNLOAD_AGAIN = "The file is probably an incomplete download or copy."
"""The hint for a container that ends early."""


class Decoder(Protocol):
    """The bytes of an image in order, decoded and checked on the way. For one thread at a time."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes of the image and return how many there were.

        Fewer than fit only where the image ends. 0 means that the image is whole: everything that
        the container has to check it by, its trailer too, was read and agrees.

        Raises:
            ImageError: the container is damaged (``image-corrupt``), ends early
                (``image-cut-short``), is followed by what does not belong to it
                (``image-trailing-garbage``), or cannot be read.
        """

    def close(self) -> None:
        """Give memory and threads back; the decoder is of no more use. May be called again."""


class PlainDecoder:
    """The bytes of ``origin`` as they are stored, from the offset ``position`` on."""

    def __init__(self, origin: Origin, position: int = 0) -> None:
        self._origin = origin
        self._position = position

    def readinto(self, buffer: memoryview) -> int:
        content = self._origin.read_at(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        """Do nothing: the opener of the origin closes it."""


class Compressed(Protocol):
    """An image in a container that was recognised."""

    @property
    def container(self) -> Container:
        """What it is compressed or packed with; the outermost where there are two."""

    @property
    def size(self) -> int | None:
        """Bytes of the image, where the container says so truly."""

    @property
    def member(self) -> str | None:
        """Its name among the container's members; ``None`` where a container has none."""

    @property
    def seekable(self) -> bool:
        """Whether a decoder may start elsewhere than at the start, without decoding all before."""

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder whose first byte is the image's byte ``at``.

        ``at`` is 0 unless ``seekable``. An origin that is not seekable gives one decoder only.

        Raises:
            ImageError: the container cannot be read.
        """


class Input:
    """The bytes of an origin from an offset on, in order."""

    CHUNK_SIZE = 256 * 1024
    """Bytes read at a time: few enough to stay in the processor's cache while they are decoded."""

    def __init__(self, origin: Origin, offset: int = 0) -> None:
        self._origin = origin
        self.position = offset
        """Offset of the next byte to be read."""
        self._put_back = b""

    @property
    def name(self) -> str:
        """The origin's name."""
        return self._origin.name

    def read(self, length: int = CHUNK_SIZE) -> bytes:
        """The next ``length`` bytes; fewer, or none, only at the origin's end."""
        data, self._put_back = self._put_back[:length], self._put_back[length:]
        missing = length - len(data)
        if missing:
            # Most often nothing was put back, and nothing is copied.
            more = self._origin.read_at(self.position + len(data), missing)
            data = data + more if data else more
        self.position += len(data)
        return data

    def put_back(self, data: bytes) -> None:
        """Have ``data``, the last bytes that were read, read again."""
        self._put_back = data + self._put_back
        self.position -= len(data)


def corrupt(name: str, container: Container, place: int, image_place: int, why: str) -> ImageError:
    """The error for a container that is damaged near byte ``place`` of it."""
    return ImageError(
        f"{name}: is damaged: the {container} data near byte {place} (byte {image_place} of the "
        f"image) {why}",
        code="image-corrupt",
        hint="Compare the file's checksum with the one published, and download or copy it again.",
    )


def cut_short(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for a container that ends at byte ``place``, before it should."""
    return ImageError(
        f"{name}: is cut short: the {container} data goes on behind byte {place}, where the file "
        f"ends (byte {image_place} of the image)",
        code="image-cut-short",
        hint=DOWNLOAD_AGAIN,
    )


def trailing_garbage(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for bytes that follow a container from byte ``place`` on."""
    return ImageError(
        f"{name}: the {container} data ends at byte {place} (byte {image_place} of the image), but "
        "something else follows",
        code="image-trailing-garbage",
        hint="Part of the image may be missing: download or copy the file again.",
    )
