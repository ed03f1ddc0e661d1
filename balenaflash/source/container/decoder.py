"""Containers, the origin of their bytes, and the interface of every decoder."""

import os
import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from balenaflash.errors import ImageError
from balenaflash.rereading import Rereads
from balenaflash.units import KIB

CHUNK_SIZE = 256 * KIB
"""Bytes read or decoded at a time: few enough to stay in the processor's cache while in work."""

_Read = TypeVar("_Read")


class Origin(Protocol):
    """Source of the bytes of a container, read-only and as stored."""

    @property
    def name(self) -> str:
        """Name for messages: the path as the user gave it."""

    @property
    def size(self) -> int | None:
        """Bytes from start to end; ``None`` if that is known only at the end."""

    @property
    def seekable(self) -> bool:
        """True if any bytes may be read, again and in any order.

        Otherwise each offset must be the end of the bytes read before.
        """

    @property
    def is_local(self) -> bool:
        """True if a small read costs next to nothing; otherwise each one is a request."""

    def read_at(self, offset: int, length: int) -> bytes:
        """The ``length`` bytes from ``offset`` on, fewer only at the end.

        Called by one thread at a time.

        Raises:
            ImageError: they cannot be read.
        """

    def open_file(self) -> int | None:
        """A new descriptor at the first byte, for a program; the caller closes it.

        ``None`` if the bytes are not in a file.
        """


class FileOrigin:
    """A container in a regular file or on a block device; ``size`` is that at opening."""

    seekable = True
    is_local = True

    def __init__(
        self, name: str, descriptor: int, size: int, rereads: Rereads | None = None
    ) -> None:
        """The caller closes ``descriptor``."""
        self.descriptor = descriptor
        self.rereads = rereads or Rereads()
        self._name = name
        self._size = size

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        wanted = max(0, min(length, self._size - offset))
        data = self._pread(offset, wanted)
        while len(data) < wanted and (more := self._pread(offset + len(data), wanted - len(data))):
            data += more
        return data

    def open_file(self) -> int | None:
        # The file may have lost its name; without /proc it cannot be opened again.
        try:
            return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

    def _pread(self, offset: int, length: int) -> bytes:
        return self._attempt(offset, partial(os.pread, self.descriptor, length, offset))

    def _attempt(self, offset: int, read: Callable[[], _Read]) -> _Read:
        """The result of ``read``, which reads from ``offset`` on; repeated once if it fails."""
        try:
            return self.rereads.read(read)
        except OSError as error:
            raise ImageError(
                f"{self.name}: cannot be read at byte {offset}: {error.strerror}",
                code="image-unreadable",
            ) from error


class Peeked:
    """An origin whose first bytes can be inspected before it is read from the start."""

    def __init__(self, origin: Origin) -> None:
        self.name = origin.name
        self.seekable = origin.seekable
        self.is_local = origin.is_local
        self._origin = origin
        self._head = b""

    @property
    def size(self) -> int | None:
        return self._origin.size

    def peek(self, length: int) -> bytes:
        """The first ``length`` bytes, fewer only if the origin is shorter."""
        if length > len(self._head):
            self._head += self._origin.read_at(len(self._head), length - len(self._head))
        return self._head[:length]

    def read_at(self, offset: int, length: int) -> bytes:
        head = self._head[offset : offset + length]
        if len(head) == length:
            return head
        return head + self._origin.read_at(offset + len(head), length - len(head))

    def open_file(self) -> int | None:
        return self._origin.open_file()


class Input:
    """The bytes of an origin from an offset on, in order."""

    def __init__(self, origin: Origin, offset: int = 0) -> None:
        self.name = origin.name
        self.position = offset
        """Offset of the next byte in the origin."""
        self._origin = origin
        self._data = b""
        """The bytes read from the origin last."""
        self._used = 0
        """Number of these that lie before ``position``."""

    def read(self, length: int = CHUNK_SIZE) -> bytes:
        """The next ``length`` bytes, fewer only at the origin's end."""
        data = self._data[self._used : self._used + length]
        self.position += len(data)
        self._used += len(data)
        if len(data) < length:
            more = self._origin.read_at(self.position, length - len(data))
            self.position += len(more)
            self._data, self._used = more, len(more)
            # Most often nothing was left of the last chunk, and nothing is copied.
            data = data + more if data else more
        return data

    def peek(self, length: int) -> bytes:
        """The next ``length`` bytes, fewer only at the origin's end, without moving on."""
        while len(rest := self._data[self._used : self._used + length]) < length:
            end = self.position + len(rest)
            more = self._origin.read_at(end, CHUNK_SIZE)
            if not more:
                break
            self._data, self._used = rest + more, 0
        return rest

    def put_back(self, data: bytes) -> None:
        """Read ``data``, the last bytes that were read, once more."""
        self.position -= len(data)
        if len(data) <= self._used:
            self._used -= len(data)
        else:
            self._data, self._used = data + self._data[self._used :], 0


class Container(StrEnum):
    """The form in which an image is stored."""

    RAW = "raw"
    BLOCK_DEVICE = "block-device"
    GZIP = "gzip"
    XZ = "xz"
    BZIP2 = "bzip2"
    ZSTD = "zstd"
    ZIP = "zip"


class Decoder(Protocol):
    """The bytes of an image in order, decoded and checked on the way. For one thread at a time."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer`` with the next bytes of the image and return their number.

        It is less than the buffer's size only at the end of the image. 0 means that the image is
        complete: all checksums and sizes in the container were read and agree. After an error the
        decoder can only be closed.

        Raises:
            ImageError: the container is damaged (``image-corrupt``), ends early
                (``image-cut-short``), is followed by other data (``image-trailing-garbage``), or
                cannot be read.
        """

    def close(self) -> None:
        """Release memory and threads; nothing more is read. May be called again."""


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


Pieces = Generator[bytes | memoryview, None, None]
"""Parts of an image in order, decoded one after another. None of them is empty."""


class PiecesDecoder:
    """A decoder that copies an image from its pieces."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readinto(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer) and self._has_more():
            count = min(len(self._rest), len(buffer) - filled)
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def skip(self, length: int) -> bool:
        """Decode the next ``length`` bytes without copying them; False if there are fewer."""
        while length and self._has_more():
            count = min(len(self._rest), length)
            self._rest = self._rest[count:]
            length -= count
        return not length

    def _has_more(self) -> bool:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        return bool(self._rest)

    def close(self) -> None:
        self._rest = memoryview(b"")
        self._pieces.close()


@dataclass(frozen=True, slots=True)
class Compressed:
    """An image in a container that was recognised."""

    container: Container
    """Its format; of two, one inside the other, the outer one."""

    opener: Callable[[int], Decoder]
    """Opens a decoder from an offset on, which is 0 unless ``seekable``."""

    size: int | None = None
    """Bytes of the image, if the container states them reliably."""

    member: str | None = None
    """Name among the container's members; ``None`` if the format has none."""

    seekable: bool = False
    """True if a decoder can start inside the image without decoding everything before."""

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder whose first byte is the image's byte ``at``, which is 0 unless ``seekable``.

        Only one decoder can be opened if the origin is not seekable.

        Raises:
            ImageError: the container cannot be read.
        """
        if at and not self.seekable:
            raise ValueError(at)
        return self.opener(at)


DOWNLOAD_AGAIN = "The file is probably an incomplete download or copy."
"""The hint for a container that ends early."""


def corrupt(name: str, container: Container, place: int, image_place: int, why: str) -> ImageError:
    """The error for a container that is damaged near its byte ``place``."""
    return ImageError(
        f"{name}: is damaged: the {container} data near byte {place} (byte {image_place} of the "
        f"image) {why}",
        code="image-corrupt",
        hint="Compare the file's checksum with the published one, and download or copy it again.",
    )


def cut_short(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for a container that ends at its byte ``place``, before it is complete."""
    return ImageError(
        f"{name}: is truncated: the file ends at byte {place}, inside the {container} data "
        f"(byte {image_place} of the image)",
        code="image-cut-short",
        hint=DOWNLOAD_AGAIN,
    )


def trailing_garbage(name: str, container: Container, place: int, image_place: int) -> ImageError:
    """The error for other data that follows a container from its byte ``place`` on."""
    return ImageError(
        f"{name}: the {container} data ends at byte {place} (byte {image_place} of the image), but "
        "other data follows",
        code="image-trailing-garbage",
        hint="Part of the image may be missing: download or copy the file again.",
    )


def unsupported(name: str, fact: str, hint: str | None = None) -> ImageError:
    """The error for a container that cannot be decoded here; ``fact`` follows the name."""
    return ImageError(f"{name}: {fact}", code="image-unsupported", hint=hint)


def shell_name(name: str) -> str:
    """The ``name`` of an origin in a command to type; FILE if it is not the path of a file."""
    return "FILE" if name == "-" or "://" in name else shlex.quote(name)


def usable_cores() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0))
