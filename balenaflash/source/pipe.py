"""Standard input as the origin of an image, and any stream that is read forwards only."""

import fcntl
import os
import select
import stat
from collections.abc import Callable

from balenaflash.errors import ImageError
from balenaflash.units import KIB, MIB

_HEAD_SIZE = 64 * KIB
"""Bytes from the start that stay readable, for recognition by content."""


class ForwardReader:
    """A stream read in ascending order, with its head kept.

    ``take(limit)`` returns the next 1 to ``limit`` bytes, and ``b""`` at the end only.
    """

    def __init__(self, take: Callable[[int], bytes | memoryview]) -> None:
        self._take = take
        self._head = bytearray()
        self._position = 0

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ValueError: ``offset`` is neither in the head nor where the last read ended. That is a
                mistake of the caller, which no image can cause.
        """
        kept = bytes(self._head[offset : offset + length])
        rest = length - len(kept)
        if rest == 0:
            return kept
        if offset + len(kept) != self._position:
            raise ValueError(f"byte {offset} of a stream that has come to {self._position}")
        return kept + self._read_on(rest) if kept else self._read_on(rest)

    def _read_on(self, length: int) -> bytes:
        pieces = []
        while length and (piece := self._take(length)):
            if len(self._head) < _HEAD_SIZE:
                self._head += piece[: _HEAD_SIZE - len(self._head)]
            self._position += len(piece)
            length -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)


class PipeOrigin:
    """The bytes of an open descriptor in their order.

    The descriptor stays open: it belongs to the caller.

    Raises:
        ImageError: the descriptor is closed, a terminal or a directory; when reading also that it
            failed, or that there is not a single byte.
    """

    seekable = False
    is_local = False

    def __init__(self, descriptor: int, name: str = "-") -> None:
        self.name = name
        self._descriptor = descriptor
        _prepare(descriptor, name)
        self._passed = 0
        self._ended = False
        self._forward = ForwardReader(self._take)

    @property
    def size(self) -> int | None:
        return self._passed if self._ended else None

    def read_at(self, offset: int, length: int) -> bytes:
        return self._forward.read_at(offset, length)

    def open_file(self) -> None:
        pass

    def _take(self, limit: int) -> bytes:
        if self._ended:
            return b""
        try:
            block = _read_some(self._descriptor, min(limit, MIB))
        except OSError as error:
            raise _unreadable(self.name, f"at byte {self._passed}: {error.strerror}") from error
        if not block and not self._passed:
            raise ImageError(
                "standard input: is empty",
                code="image-empty",
                hint="Did the command before the pipe fail?",
            )
        self._passed += len(block)
        self._ended = not block
        return block


def _read_some(descriptor: int, limit: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, limit)
        except BlockingIOError:
            # Another process that shares the pipe has made it non-blocking.
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()


def _prepare(descriptor: int, name: str) -> None:
    try:
        mode = os.fstat(descriptor).st_mode
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise _unreadable(name, f"at byte 0: {error.strerror}") from error
    # The command line opens a closed standard input so; see `prepare_standard_streams`.
    if access == os.O_WRONLY:
        raise _unreadable(name, "because it is closed")
    if os.isatty(descriptor):
        raise ImageError(
            f"{name}: standard input is a terminal, not an image",
            code="image-not-a-file",
            hint="Pipe an image into it: xz -dc IMAGE.xz | balenaflash ... -",
        )
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name}: is a directory, not an image", code="image-not-a-file")
    if stat.S_ISFIFO(mode):
        try:
            # 1 MiB in place of 64 KiB: writer and reader wake less often.
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, MIB)
        except OSError:
            # EPERM above /proc/sys/fs/pipe-max-size or the user's share of pages (pipe(7)); EBUSY
            # never when growing. The pipe works as it is.
            return


def _unreadable(name: str, fact: str) -> ImageError:
    return ImageError(f"{name}: standard input cannot be read {fact}", code="image-unreadable")
