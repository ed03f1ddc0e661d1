"""The bytes of a container as they are stored."""

import os
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
