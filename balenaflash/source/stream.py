"""An image that can only be read forwards, made to look like any other by a spool.

What has been decoded is kept in a temporary file for as long as the image is being explored:
its table, its boot partition, the files of its root filesystem. Then it is read from start to
end, and what was kept is not decoded a second time. Of a file, which can be decoded again, what
was only skipped is not kept, but for what lies near what was read: a filesystem is gone through
back and forth.
"""

import errno
import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from balenaflash.errors import ImageError
from balenaflash.source.base import Source
from balenaflash.source.container.decoder import Decoder
from balenaflash.units import GIB, KIB, MIB, Extent, format_size

MOST_KEPT = 4 * GIB
"""Bytes that are kept at most. Zeros do not count: they take no room."""

_SPOOL_PIECE = 64 * KIB  # bytes; a piece of zeros stays a hole
_ZEROS = bytearray(_SPOOL_PIECE)  # a bytearray compares by memcmp, a memoryview byte by byte


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
            for start in range(0, len(content), _SPOOL_PIECE):
                piece = content[start : start + _SPOOL_PIECE]
                zeros = _ZEROS if len(piece) == _SPOOL_PIECE else bytearray(len(piece))
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


_MAX_SIZE = 1 << 40  # bytes; who decodes on for longer will not come to an end
_NEAR = 48 * MIB  # bytes after what was read, and before, that are likely to be asked for next
_PIECE = MIB  # bytes decoded at a time where nobody gave a buffer
_PATIENCE = 0.5  # seconds that closing waits for whoever reads


class StreamSource:
    """A `balenaflash.source.base.Source` over decoders; whoever opened it closes it."""

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
        """``open_decoder`` gives a decoder that starts at an offset of the image.

        More than once only if ``is_repeatable``, and while another is in use only if
        ``is_forkable``: standard input cannot be read again.

        ``jump`` is the distance in bytes from which on that is cheaper than decoding what lies
        between; ``None`` where a decoder can only start at 0. ``seekable`` says that it costs
        nothing at all. ``at_end`` is called when the end was reached and is asked for; it raises
        ``ImageError`` where what was read is no longer true.
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
        # Chunks are read ahead by a thread while another looks things up.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        """The name as the user gave it."""
        return self._name

    @property
    def size(self) -> int | None:
        """Bytes from start to end, by the container's word or since the end was reached."""
        return self._declared_size if self._end is None else self._end

    @property
    def seekable(self) -> bool:
        """Whether any place is read without decoding others."""
        return self._seekable

    def cost(self, offset: int) -> int | None:
        """Bytes to decode before the one at ``offset`` can be read, or a bound of them.

        ``None`` if it was not kept, and the stream can be read only once.
        """
        with self._lock:
            if self._spool.held_from(offset):
                return 0
            ahead = offset - self._position
            if ahead < 0 and not self._is_repeatable:
                return None
            distance = offset if ahead < 0 else ahead
            return distance if self._jump is None else min(distance, self._jump)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``; they are kept, and so is what lies near them.

        Of a stream that cannot be read again all that lies before them is kept.
        """
        self._require_inside(offset, length)
        buffer = bytearray(length)
        with self._lock:
            self._fill(offset, memoryview(buffer), keep=True)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on; within ``sequential`` nothing more is kept."""
        self._require_inside(offset, len(buffer))
        with self._lock:
            self._fill(offset, buffer, keep=not self._passing)

    def fork(self) -> "StreamSource | None":
        """Another one over decoders of its own."""
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
        """Within the block, what ``readinto`` reads is not kept."""
        before, self._passing = self._passing, True
        try:
            yield
        finally:
            self._passing = before

    def measure(self, limit: int | None = None) -> int:
        """Decode what is left, keep it, and give the exact size.

        Raises:
            ImageError: it is damaged or cut short; or more than ``limit`` bytes come out of it.
        """
        with self._lock:
            return self._go_to_end(limit, keep=True)

    def finish(self) -> None:
        """Decode what is left and check what it ends with.

        Raises:
            ImageError: it is damaged or cut short.
        """
        with self._lock:
            self._go_to_end(_MAX_SIZE, keep=False)

    def close(self) -> None:
        """Close the decoder and drop what was kept."""
        for fork in self._forks:
            fork.close()
        # Somebody who leaves at once does so while a thread still decodes, or waits for a pipe
        # that stands still; a decoder must not be closed under its hands.
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
        """Bring the decoder to ``offset``; what is decoded on the way is kept if ``keep``."""
        is_behind = offset < self._position
        if is_behind or (self._jump is not None and offset - self._position > self._jump):
            if not self._is_repeatable:
                raise self._gone_by(offset)
            self._close_decoder()
            self._position = offset if self._jump is not None else 0
        if self._position == offset:
            return
        start = self._position
        scratch = memoryview(bytearray(min(_PIECE, offset - start)))
        while self._position < offset:
            # What is not a file comes over a network, and is not fetched twice.
            is_near = min(self._position - start, offset - self._position) < _NEAR
            is_kept = keep and (is_near or not self._is_forkable)
            if not self._decode(scratch[: offset - self._position], keep=is_kept):
                raise self._cut_short(offset + 1)

    def _decode(self, buffer: memoryview, *, keep: bool) -> int:
        if self._fault is not None:
            # What a decoder gives after a fault is nobody's image.
            raise self._fault
        try:
            if self._decoder is None:
                self._decoder = self._open_decoder(self._position)
            count = self._decoder.readinto(buffer)
            if count == 0:
                self._reach_end()
        except ImageError as error:
            self._fault = error
            raise
        if count == 0:
            return 0
        if self._declared_size is not None and self._position + count > self._declared_size:
            self._fault = self._untrue_size("more")
            raise self._fault
        if keep:
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

    def _reach_end(self) -> None:
        if self._declared_size not in {None, self._position}:
            raise self._untrue_size(str(self._position))
        self._end = self._position

    def _untrue_size(self, found: str) -> ImageError:
        return ImageError(
            f"{self._name}: says that it holds {self._declared_size} bytes, but holds {found}",
            code="image-corrupt",
            hint="Fetch it again.",
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

    def _gone_by(self, offset: int) -> ImageError:
        return ImageError(
            f"{self._name}: byte {offset} is needed again, but it can be read only once",
            code="image-not-repeatable",
            hint="Save it to a file first.",
        )

    def _cut_short(self, end: int) -> ImageError:
        return ImageError(
            f"{self._name}: ends at byte {self.size}, but bytes up to {end} are needed",
            code="image-truncated",
            hint="It was probably made from an incomplete image.",
        )


class OutOfReachError(Exception):
    """To read on, more of the stream would have to be decoded than was allowed."""


class WithinReach:
    """An image that any place is read of until too much of a stream was decoded for it.

    ``read`` and ``readinto`` raise `OutOfReachError` then.
    """

    seekable = True

    def __init__(self, source: Source, limit: int) -> None:
        """Decode at most ``limit`` bytes of ``source`` beyond what was decoded before."""
        self._source = source
        self._left = limit

    @property
    def name(self) -> str:
        """As the image below."""
        return self._source.name

    @property
    def size(self) -> int | None:
        """As the image below."""
        return self._source.size

    def cost(self, offset: int) -> int | None:
        """As the image below."""
        return self._source.cost(offset)

    def read(self, offset: int, length: int) -> bytes:
        """As the image below."""
        self._spend(offset)
        return self._source.read(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """As the image below."""
        self._spend(offset)
        self._source.readinto(offset, buffer)

    def fork(self) -> Source | None:
        """As the image below."""
        return self._source.fork()

    def sequential(self) -> AbstractContextManager[None]:
        """As the image below."""
        return self._source.sequential()

    def finish(self) -> None:
        """As the image below."""
        self._source.finish()

    def measure(self, limit: int | None = None) -> int:
        """As the image below."""
        return self._source.measure(limit)

    def _spend(self, offset: int) -> None:
        cost = self._source.cost(offset)
        if cost is None or cost > self._left:
            raise OutOfReachError
        self._left -= cost
