"""A disk as what a commit rewrites, and as an image to read: past the cache, in whole sectors.

Each read is made twice and compared: an edit writes back much of what it read, and finds in the
rest where to write. One bit wrong in one read would be on the disk for good.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence

import xxhash

from balenaflash.errors import ImageError, WriteError
from balenaflash.extent import KIB, MIB, Extent
from balenaflash.image.commit.store import ReadBackDiffersError, StoreFailedError
from balenaflash.image.patch import Patch, lay_over
from balenaflash.image.source import RandomAccess
from balenaflash.rereading import Rereads
from balenaflash.target.medium import Medium

_BUFFER_SIZE = MIB
_BLOCK_SIZE = 64 * KIB  # a multiple of every logical sector size
_MAX_BLOCKS = 256  # kept at a time


class CardStore:
    """An open disk; bytes at any offset, which the disk itself reads and writes by sectors."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_SIZE))  # aligned as O_DIRECT wants it

    @property
    def alignment(self) -> int:
        """The logical sector of the disk in bytes."""
        return self._medium.alignment

    @property
    def rereads(self) -> Rereads:
        """Reads that had to be repeated."""
        return self._medium.rereads

    @property
    def name(self) -> str:
        """Its node."""
        return self._medium.name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._medium.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, from the medium."""
        content = bytearray()
        for sectors, wanted in self._pieces(offset, length):
            found = self._read_twice(sectors)
            content += found[wanted.start - sectors.start : wanted.end - sectors.start]
        return bytes(content)

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on, whole sectors."""
        for sectors, wanted in self._pieces(offset, len(content)):
            buffer = self._buffer[: sectors.size]
            buffer[:] = content[wanted.start - offset : wanted.end - offset]
            try:
                self._medium.write(sectors.start, buffer)
            except WriteError as error:
                raise self._failure(error) from error

    def flush(self) -> None:
        """Let the disk empty its own cache."""
        try:
            self._medium.flush()
        except WriteError as error:
            raise self._failure(error) from error

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, which never comes from a cache of the kernel."""
        return self.read(offset, length)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Extent, Extent]]:
        """Ranges of whole sectors that fit the buffer, and what of each is asked for."""
        unit, end = self._medium.alignment, offset + length
        start = offset - offset % unit
        while start < end:
            stop = min(start + _BUFFER_SIZE, -(-end // unit) * unit)
            yield Extent(start, stop), Extent(max(start, offset), min(stop, end))
            start = stop

    def _read_twice(self, sectors: Extent) -> bytes:
        try:
            found = self.rereads.read_twice(lambda: self._read_once(sectors))
        except WriteError as error:
            raise self._failure(error) from error
        if found is None:
            raise StoreFailedError(
                f"reads otherwise each time at byte {sectors.start} and after it"
            )
        return found

    def _read_once(self, sectors: Extent) -> bytes:
        buffer = self._buffer[: sectors.size]
        self._medium.readinto(sectors.start, buffer)
        return bytes(buffer)

    def _failure(self, error: WriteError) -> StoreFailedError:
        return StoreFailedError(str(error).removeprefix(f"{self.name}: "))


class CardSource(RandomAccess):
    """What a disk holds, as the image that is to be edited; it is not written meanwhile."""

    def __init__(self, store: CardStore) -> None:
        self._store = store
        self._blocks: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}
        """Of each block that was ever read."""

    @property
    def name(self) -> str:
        """The node of the disk."""
        return self._store.name

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._store.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, all of them."""
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise ImageError(
                f"{self.name}: ends at byte {self.size}, but bytes up to {end} are needed",
                code="image-truncated",
                hint="The image on it is larger than the disk.",
            )
        first, last = offset // _BLOCK_SIZE, (end - 1) // _BLOCK_SIZE
        content = b"".join(self._block(number) for number in range(first, last + 1))
        return content[offset - first * _BLOCK_SIZE :][:length]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on."""
        buffer[:] = self.read(offset, len(buffer))

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            start = number * _BLOCK_SIZE
            try:
                block = self._store.read(start, self._length(number))
            except StoreFailedError as error:
                raise ImageError(f"{self.name}: {error.reason}", code="image-unreadable") from error
            if len(self._blocks) >= _MAX_BLOCKS:
                self._blocks.clear()
            self._blocks[number] = block
            self._digests[number] = xxhash.xxh3_128_digest(block)
        return block

    def require_only(self, patches: Sequence[Patch]) -> Callable[[], None]:
        """What is to be called after ``patches`` were written: it reads all that was read before.

        A write may land anywhere on a disk that is not what it claims to be, and by what was read
        the patches were made: the partition table, the boot sector, the allocation tables and
        directories.

        What is returned raises:
            ReadBackDiffersError: something else than the patches has changed.
            StoreFailedError: it cannot be read.
        """
        expected = dict(self._digests)
        touched = {
            number
            for patch in patches
            for number in range(
                patch.offset // _BLOCK_SIZE, (patch.extent.end - 1) // _BLOCK_SIZE + 1
            )
        }
        for number in touched & expected.keys():
            block = bytearray(self._block(number))
            lay_over(patches, number * _BLOCK_SIZE, memoryview(block))
            expected[number] = xxhash.xxh3_128_digest(block)

        def require() -> None:
            for number, digest in sorted(expected.items()):
                block = self._store.read(number * _BLOCK_SIZE, self._length(number))
                if xxhash.xxh3_128_digest(block) != digest:
                    raise ReadBackDiffersError(number * _BLOCK_SIZE)

        return require

    def _length(self, number: int) -> int:
        return min(_BLOCK_SIZE, self.size - number * _BLOCK_SIZE)
