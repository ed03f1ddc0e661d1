"""An image from standard input."""

import fcntl
import os
import select
import stat

from balenaflash.errors import ImageError
from balenaflash.source.http import ForwardReader
from balenaflash.units import MIB


class PipeOrigin:
    """The bytes that come out of an open descriptor, in their order.

    The descriptor stays open: it belongs to the caller.

    Raises:
        ImageError: the descriptor is closed, a terminal or a directory.
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
        """Bytes from start to end; unknown until the end was reached."""
        return self._passed if self._ended else None

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, fewer only at the end.

        Raises:
            ImageError: reading failed, or there is nothing at all.
            ValueError: as `ForwardReader.read_at`.
        """
        return self._forward.read_at(offset, length)

    def open_file(self) -> None:
        """They are in no file."""

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
        _widen(descriptor)


def _widen(descriptor: int) -> None:
    """Let a pipe hold 1 MiB in place of 64 KiB, so that writer and reader wake less often."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, MIB)
    except OSError:
        # EPERM above /proc/sys/fs/pipe-max-size or the user's share of pages (pipe(7)); EBUSY
        # never when growing. The pipe works as it is.
        return


def _unreadable(name: str, fact: str) -> ImageError:
    return ImageError(f"{name}: standard input cannot be read {fact}", code="image-unreadable")
