"""What was decoded of a stream and may be asked for again, in a temporary file."""

import errno
import os
import tempfile
from bisect import bisect_right

from balenaflash.errors import ImageError
from balenaflash.extent import GIB, KIB, Extent, format_size

MOST_KEPT = 4 * GIB
"""Bytes that are kept at most. Zeros do not count: they take no room."""

_PIECE = 64 * KIB  # bytes; a piece of zeros stays a hole
_ZEROS = bytearray(_PIECE)  # a bytearray compares by memcmp, a memoryview byte by byte


class Spool:
    """Bytes at offsets, kept until it is closed; the file has no name and is sparse."""

    def __init__(self, name: str, limit: int = MOST_KEPT) -> None:
        """Keep nothing yet; never more than ``limit`` bytes that are not zero."""
        self._name = name
        self._limit = limit
        self._room = limit
        self._descriptor: int | None = None
        self._held: list[Extent] = []

    def held_from(self, offset: int) -> int:
        """How many bytes are kept from ``offset`` on without a gap."""
        index = bisect_right(self._held, offset, key=_start) - 1
        if index < 0:
            return 0
        return max(0, self._held[index].end - offset)

    def keep(self, offset: int, content: memoryview) -> None:
        """Keep ``content`` as what the image holds at ``offset``.

        Raises:
            ImageError: there is no room for it, in the folder (``no-temporary-space``) or within
                the bound (``spool-full``).
        """
        if self.held_from(offset) >= len(content):
            return
        try:
            if self._descriptor is None:
                self._descriptor = _open_nameless()
            for start in range(0, len(content), _PIECE):
                piece = content[start : start + _PIECE]
                zeros = _ZEROS if len(piece) == _PIECE else bytearray(len(piece))
                if zeros != piece:
                    self._take_room(len(piece))
                    _write(self._descriptor, piece, offset + start)
        except OSError as error:
            raise ImageError(
                f"{self._name}: what was decoded of it cannot be kept in {_folder()}: "
                f"{error.strerror}",
                code="no-temporary-space",
                hint="Name a folder with more room: TMPDIR=FOLDER; or decompress the image first.",
            ) from error
        self._add(Extent(offset, offset + len(content)))

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, all of which is kept, from ``offset`` on.

        Raises:
            ImageError: the temporary file cannot be read.
        """
        if self._descriptor is None:
            raise ValueError("nothing is kept")
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise ImageError(
                    f"{self._name}: what was decoded of it cannot be read again: {error.strerror}",
                    code="no-temporary-space",
                    hint="Name another folder: TMPDIR=FOLDER; or decompress the image first.",
                ) from error
            if count == 0:  # behind the last byte that is not zero
                buffer[done:] = bytes(len(buffer) - done)
                return
            done += count

    def close(self) -> None:
        """Drop what was kept."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._held = []

    def _take_room(self, size: int) -> None:
        if size > self._room:
            raise ImageError(
                f"{self._name}: more than {format_size(self._limit)} of it would have to be kept",
                code="spool-full",
                hint="Save it to a file first, and name that.",
            )
        self._room -= size

    def _add(self, extent: Extent) -> None:
        """Merge ``extent`` into what is held, which stays ordered and disjoint."""
        touching = [
            each for each in self._held if each.start <= extent.end and each.end >= extent.start
        ]
        start = min([extent.start, *(each.start for each in touching)])
        end = max([extent.end, *(each.end for each in touching)])
        others = [each for each in self._held if each not in touching]
        self._held = sorted([*others, Extent(start, end)])


def _start(extent: Extent) -> int:
    return extent.start


def _folder() -> str:
    # /tmp may lie in memory, and an image does not belong there: file-hierarchy(7).
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - a file without a name


def _open_nameless() -> int:
    folder = _folder()
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # EISDIR: a kernel or filesystem that does not know O_TMPFILE (open(2)).
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)
