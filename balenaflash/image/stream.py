"""An image that can only be read from its start on, made to look like any other.

What has been decoded is kept in a temporary file for as long as the image is being explored:
its table, its boot partition, the files of its root filesystem. Then it is read from start to
end, and what was kept is not decoded a second time. Of a file, which can be decoded again, what
was only skipped is not kept, but for what lies near what was read: a filesystem is gone through
back and forth.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.extent import MIB, format_size
from balenaflash.image.spool import Spool

_MAX_SIZE = 1 << 40  # bytes; who decodes on for longer will not come to an end
_NEAR = 48 * MIB  # bytes after what was read, and before, that are likely to be asked for next
_PIECE = MIB  # bytes decoded at a time where nobody gave a buffer
_PATIENCE = 0.5  # seconds that closing waits for whoever reads


class Decoder(Protocol):
    """The bytes of an image in their order."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill the start of ``buffer``; how many bytes, 0 at the end, which is then checked.

        Raises:
            ImageError: what is being decoded is damaged or cut short.
        """

    def close(self) -> None:
        """Let go of what it holds."""


class StreamSource:
    """A `balenaflash.image.source.Source` over decoders; whoever opened it closes it."""

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
