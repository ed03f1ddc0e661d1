"""An image that can only be read forwards, made to look like any other by a spool.

Decoded bytes are kept in a temporary file while the image is explored: its table, its boot
partition, the files of its root filesystem. When it is then read from start to end, those bytes
are not decoded a second time. A file can be decoded again, so bytes of it that were only skipped
are not kept, except those near a place that was read: a filesystem is read back and forth.
"""

import errno
import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

from balenaflash.errors import ImageError
from balenaflash.source.base import Source, Wrapped
from balenaflash.source.container.decoder import Decoder
from balenaflash.units import GIB, KIB, MIB, Extent, format_size, is_zero, merge

_MOST_KEPT = 4 * GIB
"""Bytes that are kept at most. Zeros do not count: they take no room."""

_SPOOL_PIECE = 64 * KIB  # bytes; a piece of zeros stays a hole


class Spool:
    """Bytes at offsets, kept until it is closed; the file has no name and is sparse."""

    def __init__(self, name: str, limit: int = _MOST_KEPT) -> None:
        """``limit`` is the number of bytes that may be kept, zeros not counted."""
        self._name = name
        self._limit = limit
        self._room = limit
        self._descriptor: int | None = None
        self._held: list[Extent] = []

    def held_from(self, offset: int) -> int:
        """Number of bytes that are kept from ``offset`` on without a gap."""
        index = bisect_right(self._held, offset, key=attrgetter("start")) - 1
        if index < 0:
            return 0
        return max(0, self._held[index].end - offset)

    def keep(self, offset: int, content: memoryview) -> None:
        """Keep ``content``, the bytes of the image at ``offset``.

        Raises:
            ImageError: there is not enough room, in the folder (``no-temporary-space``) or within
                the limit (``spool-full``).
        """
        if self.held_from(offset) >= len(content):
            return
        try:
            if self._descriptor is None:
                self._descriptor = _open_nameless()
            for start in range(0, len(content), _SPOOL_PIECE):
                piece = content[start : start + _SPOOL_PIECE]
                if not is_zero(piece):
                    self._take_room(len(piece))
                    done = 0
                    while done < len(piece):
                        done += os.pwrite(self._descriptor, piece[done:], offset + start + done)
        except OSError as error:
            raise ImageError(
                f"{self._name}: its decoded bytes cannot be kept in {_folder()}: {error.strerror}",
                code="no-temporary-space",
                hint="Name a folder with more room: TMPDIR=FOLDER; or decompress the image first.",
            ) from error
        self._held = list(merge(sorted([*self._held, Extent(offset, offset + len(content))])))

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
                    f"{self._name}: its decoded bytes cannot be read again: {error.strerror}",
                    code="no-temporary-space",
                    hint="Name another folder: TMPDIR=FOLDER; or decompress the image first.",
                ) from error
            if count == 0:  # after the last byte that is not zero
                buffer[done:] = bytes(len(buffer) - done)
                return
            done += count

    def close(self) -> None:
        """Remove the temporary file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._held = []

    def _take_room(self, size: int) -> None:
        if size > self._room:
            raise ImageError(
                f"{self._name}: more than {format_size(self._limit)} of it would have to be kept",
                code="spool-full",
                hint="Save it to a file first, and give that file.",
            )
        self._room -= size


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


_MAX_SIZE = 1 << 40  # bytes; a stream that decodes to more has no end
_NEAR = 48 * MIB  # bytes before and after a place that was read, likely to be read next
_PIECE = MIB  # bytes decoded at a time without a buffer of the caller
_PATIENCE = 0.5  # seconds that closing waits for a thread that reads


class StreamSource(Source):
    """An image in a stream; the caller closes it.

    ``open_decoder`` returns a decoder that starts at an offset of the image. It is called more
    than once only if ``is_repeatable``, and while another decoder is in use only if
    ``is_forkable``: standard input cannot be read again.
    """

    def __init__(
        self,
        name: str,
        open_decoder: Callable[[int], Decoder],
        *,
        size: int | None,
        jump: int | None,
        seekable: bool = False,
        is_repeatable: bool,
        is_forkable: bool,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """``jump`` is the distance in bytes from which a new decoder is cheaper than decoding on.

        It is ``None`` if a decoder can only start at 0. ``seekable`` means that a new decoder
        costs nothing. ``at_end`` is called whenever the end is asked for; it raises ``ImageError``
        if the stream was changed while it was read.
        """
        self._name = name
        self._open_decoder = open_decoder
        self._declared_size = size
        self._end: int | None = None
        self._jump = jump
        self._seekable = seekable
        self._is_repeatable = is_repeatable
        self._is_forkable = is_forkable
        self._at_end = at_end
        self._forks: list[StreamSource] = []
        self._decoder: Decoder | None = None
        self._position = 0
        self._fault: ImageError | None = None
        self._spool = Spool(name)
        self._has_room = True
        self._passing = False
        # One thread reads chunks ahead while another explores the image.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int | None:
        return self._declared_size if self._end is None else self._end

    @property
    def seekable(self) -> bool:
        return self._seekable

    def cost(self, offset: int) -> int | None:
        with self._lock:
            if self._spool.held_from(offset):
                return 0
            ahead = offset - self._position
            if ahead < 0 and not self._is_repeatable:
                return None
            distance = offset if ahead < 0 else ahead
            return distance if self._jump is None else min(distance, self._jump)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``; they and the bytes near them are kept.

        If the stream cannot be read again, all bytes before them are kept as well.
        """
        self._require_inside(offset, length)
        buffer = bytearray(length)
        with self._lock:
            self._fill(offset, memoryview(buffer), keep=True)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; within ``sequential`` nothing is kept."""
        self._require_inside(offset, len(buffer))
        with self._lock:
            self._fill(offset, buffer, keep=not self._passing)

    def fork(self) -> "StreamSource | None":
        if not self._is_forkable:
            return None
        fork = StreamSource(
            self._name,
            self._open_decoder,
            size=self.size,
            jump=self._jump,
            seekable=self._seekable,
            is_repeatable=True,
            is_forkable=True,
            at_end=self._at_end,
        )
        self._forks.append(fork)
        return fork

    @contextmanager
    def sequential(self) -> Iterator[None]:
        before, self._passing = self._passing, True
        try:
            yield
        finally:
            self._passing = before

    def measure(self, limit: int | None = None) -> int:
        with self._lock:
            return self._go_to_end(limit, keep=True)

    def finish(self) -> None:
        with self._lock:
            self._go_to_end(_MAX_SIZE, keep=False)

    def close(self) -> None:
        """Close the decoder and the spool."""
        for fork in self._forks:
            fork.close()
        # After an interrupt another thread may still decode, or wait for a pipe that stands
        # still; its decoder must not be closed meanwhile.
        if self._lock.acquire(timeout=_PATIENCE):
            self._spool.close()
            self._close_decoder()
            self._lock.release()

    def _go_to_end(self, limit: int | None, *, keep: bool) -> int:
        scratch = memoryview(bytearray(_PIECE))
        while self._end is None:
            if limit is not None and self._position > limit:
                raise ImageError(
                    f"{self._name}: holds more than {format_size(limit)}", code="image-too-large"
                )
            self._decode(scratch, keep=keep)
        self._at_end()
        return self._end

    def _fill(self, offset: int, buffer: memoryview, *, keep: bool) -> None:
        if not buffer and offset > self._position:
            self._go_to(offset, keep=keep)
        done = 0
        while done < len(buffer):
            at = offset + done
            held = min(self._spool.held_from(at), len(buffer) - done)
            if held:
                self._spool.readinto(at, buffer[done : done + held])
                done += held
                continue
            self._go_to(at, keep=keep)
            if not self._spool.held_from(at):
                count = self._decode(buffer[done:], keep=keep)
                if count == 0:
                    raise self._cut_short(offset + len(buffer))
                done += count

    def _go_to(self, offset: int, *, keep: bool) -> None:
        """Move the decoder to ``offset``; bytes decoded on the way are kept if ``keep``."""
        is_behind = offset < self._position
        if is_behind or (self._jump is not None and offset - self._position > self._jump):
            if not self._is_repeatable:
                raise ImageError(
                    f"{self._name}: byte {offset} is needed again, but it can be read only once",
                    code="image-not-repeatable",
                    hint="Save it to a file first, and give that file.",
                )
            self._close_decoder()
            self._position = offset if self._jump is not None else 0
        if self._position == offset:
            return
        start = self._position
        scratch = memoryview(bytearray(min(_PIECE, offset - start)))
        while self._position < offset:
            # A stream that is not a file comes over a network, and is not fetched twice.
            is_near = min(self._position - start, offset - self._position) < _NEAR
            is_kept = keep and (is_near or not self._is_forkable)
            if not self._decode(scratch[: offset - self._position], keep=is_kept):
                raise self._cut_short(offset + 1)

    def _decode(self, buffer: memoryview, *, keep: bool) -> int:
        if self._fault is not None:
            # The bytes that a decoder returns after a fault are not the image's.
            raise self._fault
        try:
            if self._decoder is None:
                self._decoder = self._open_decoder(self._position)
            count = self._decoder.readinto(buffer)
            self._require_declared_size(count)
        except ImageError as error:
            self._fault = error
            raise
        if count == 0:
            self._end = self._position
        elif keep:
            self._keep(buffer[:count])
        self._position += count
        return count

    def _keep(self, content: memoryview) -> None:
        if not self._has_room:
            return
        try:
            self._spool.keep(self._position, content)
        except ImageError:
            if not self._is_repeatable:
                raise
            self._has_room = False

    def _require_declared_size(self, count: int) -> None:
        """Check the size that the container promises, with ``count`` more bytes decoded."""
        end, promised = self._position + count, self._declared_size
        if promised is None or (end <= promised if count else end == promised):
            return
        raise ImageError(
            f"{self._name}: should hold {promised} bytes, but holds {'more' if count else end}",
            code="image-corrupt",
            hint="Download or copy it again.",
        )

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
        self._fault = None

    def _require_inside(self, offset: int, length: int) -> None:
        end = offset + length
        if offset < 0 or length < 0 or (self.size is not None and end > self.size):
            raise self._cut_short(end)

    def _cut_short(self, end: int) -> ImageError:
        return ImageError(
            f"{self._name}: ends at byte {self.size}, but bytes up to {end} are needed",
            code="image-truncated",
            hint="It was probably made from an incomplete image.",
        )


class OutOfReachError(Exception):
    """More of the stream would have to be decoded than was allowed."""


class WithinReach(Wrapped):
    """An image of which any place is read until too much of a stream was decoded for it.

    ``read`` and ``readinto`` raise `OutOfReachError` then.
    """

    seekable = True

    def __init__(self, source: Source, limit: int) -> None:
        """Decode at most ``limit`` bytes of ``source`` beyond those decoded before."""
        super().__init__(source)
        self._left = limit

    def read(self, offset: int, length: int) -> bytes:
        self._spend(offset)
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        self._spend(offset)
        self._source.readinto(offset, buffer)

    def _spend(self, offset: int) -> None:
        cost = self._source.cost(offset)
        if cost is None or cost > self._left:
            raise OutOfReachError
        self._left -= cost
