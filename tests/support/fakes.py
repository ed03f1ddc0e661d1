"""Stand-ins for what the core reads from and writes to."""

from typing import TYPE_CHECKING

from balenaflash.errors import ImageError, WriteError
from balenaflash.progress import Phase
from balenaflash.rereading import Rereads
from balenaflash.source.base import RandomAccess
from balenaflash.targets.medium import Begun

if TYPE_CHECKING:
    from collections.abc import Callable


class MemorySource(RandomAccess):
    """An image in memory; reads that touch ``broken_at`` or more fail."""

    def __init__(self, content: bytes, *, broken_at: int | None = None) -> None:
        self._content = content
        self._broken_at = broken_at

    @property
    def name(self) -> str:
        return "image in memory"

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        if end > len(self._content) or (self._broken_at is not None and end > self._broken_at):
            raise ImageError(f"image in memory: cannot be read up to byte {end}")
        return self._content[offset:end]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))


class MemoryMedium:
    """A medium in memory, full of 0xFF; refuses what a device opened with O_DIRECT refuses."""

    def __init__(self, size: int, *, alignment: int = 512) -> None:
        self.content = bytearray(b"\xff" * size)
        self.writes: list[tuple[int, int]] = []
        self.flushes = 0
        self.fails_at: int | None = None
        self.spoil: Callable[[bytearray], None] | None = None
        self.zeroed: list[tuple[int, int]] = []
        self.write_through: Callable[[int, bytes, bytearray], None] | None = None
        """Stores in the content what is written at an offset, in place of just doing so."""

        self.rereads = Rereads()
        self._alignment = alignment
        self._reading_back = False

    @property
    def name(self) -> str:
        return "medium in memory"

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def capacity(self) -> int:
        return len(self.content)

    @property
    def alignment(self) -> int:
        return self._alignment

    @property
    def was_emptied(self) -> bool:
        return False

    def describe_unfinished(self, begun: Begun) -> str:
        return f"it stays as it is ({begun.name})"

    def write(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        assert offset % self._alignment == 0
        assert len(buffer) % self._alignment == 0
        if self.fails_at is not None and end > self.fails_at:
            raise WriteError("medium in memory: failed")
        assert end <= len(self.content)
        if self.write_through is not None:
            self.write_through(offset, bytes(buffer), self.content)
        else:
            self.content[offset:end] = buffer
        self.writes.append((offset, end))

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, memoryview(bytes(length)))
        self.zeroed.append(self.writes.pop())

    def flush(self) -> None:
        self.flushes += 1

    def begin_read_back(self) -> None:
        assert self.flushes, "read back before the flush"
        self.flush()
        self._reading_back = True
        if self.spoil is not None:
            self.spoil(self.content)

    def insert_again(self) -> None:
        """Nothing is in a cache, as of a card that was just inserted."""
        self._reading_back = True

    def readinto(self, offset: int, buffer: memoryview) -> None:
        assert self._reading_back or not any(
            start < offset + len(buffer) and offset < end
            for start, end in (*self.writes, *self.zeroed)
        ), "this read may come from the cache"
        assert offset % self._alignment == 0
        assert len(buffer) % self._alignment == 0
        buffer[:] = self.content[offset : offset + len(buffer)]


class RecordedProgress:
    """What was told, in order."""

    def __init__(self) -> None:
        self.phases: list[tuple[Phase, int | None, int]] = []
        self._open: tuple[Phase, int | None] | None = None
        self._done = 0

    def begin(self, phase: Phase, total: int | None) -> None:
        assert self._open is None, "a phase began inside another"
        self._open, self._done = (phase, total), 0

    def advance(self, size: int) -> None:
        assert size > 0
        self._done += size

    def end(self) -> None:
        assert self._open is not None
        self.phases.append((*self._open, self._done))
        self._open = None
