"""Change the boot partition of a flashed card, or of any disk that holds an image.

Each read is made twice and compared: an edit writes back much of what it read, and locates its
writes by the rest. One wrong bit in one read would stay on the disk.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import xxhash

from balenaflash.commands.card_records import record_of, recover_records
from balenaflash.commands.edit import EditReport, edit_opened
from balenaflash.edits.files import Edit
from balenaflash.errors import ImageError, WriteError
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import RandomAccess
from balenaflash.source.commit import EditableImage
from balenaflash.source.container.decoder import Container
from balenaflash.source.layers import Patch, lay_over
from balenaflash.source.opening import open_for_reading
from balenaflash.source.undo_record import ReadBackDiffersError, StoreFailedError
from balenaflash.targets.disks import find_disk
from balenaflash.targets.medium import Medium
from balenaflash.targets.open_disk import open_disk
from balenaflash.targets.safety import (
    NO_PERMISSIONS,
    Assessment,
    Permissions,
    assess,
    require_writable,
)
from balenaflash.units import KIB, MIB, Extent, align_down, align_up

_BUFFER_SIZE = MIB
_BLOCK_SIZE = 64 * KIB  # a multiple of every logical sector size
_MAX_BLOCKS = 256  # kept at a time


class CardStore:
    """An open disk as a `Store`: any range of bytes is read and written by whole sectors."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_SIZE))  # aligned for O_DIRECT
        self.alignment = medium.alignment
        self.name, self.size, self.rereads = medium.name, medium.size, medium.rereads

    def read(self, offset: int, length: int) -> bytes:
        content = bytearray()
        for sectors, wanted in self._pieces(offset, length):
            found = self._read_twice(sectors)
            content += found[wanted.start - sectors.start : wanted.end - sectors.start]
        return bytes(content)

    def write(self, offset: int, content: memoryview) -> None:
        for sectors, wanted in self._pieces(offset, len(content)):
            buffer = self._buffer[: sectors.size]
            buffer[:] = content[wanted.start - offset : wanted.end - offset]
            with self._failures():
                self._medium.write(sectors.start, buffer)

    def flush(self) -> None:
        with self._failures():
            self._medium.flush()

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, which never uses a cache of the kernel."""
        return self.read(offset, length)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Extent, Extent]]:
        """Ranges of whole sectors that fit the buffer, and the requested part of each."""
        end = offset + length
        start = align_down(offset, self.alignment)
        while start < end:
            stop = min(start + _BUFFER_SIZE, align_up(end, self.alignment))
            yield Extent(start, stop), Extent(max(start, offset), min(stop, end))
            start = stop

    def _read_twice(self, sectors: Extent) -> bytes:
        buffer = self._buffer[: sectors.size]

        def read() -> bytes:
            self._medium.readinto(sectors.start, buffer)
            return bytes(buffer)

        with self._failures():
            found = self.rereads.read_twice(read)
        if found is None:
            raise StoreFailedError(f"each read from byte {sectors.start} on returns other content")
        return found

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except WriteError as error:
            raise StoreFailedError(str(error).removeprefix(f"{self.name}: ")) from error


class CardSource(RandomAccess):
    """The content of a disk, as the image that is to be edited; it is not written meanwhile."""

    def __init__(self, store: CardStore) -> None:
        self._store = store
        self._blocks: dict[int, bytes] = {}
        self._digests: dict[int, bytes] = {}
        """Digest of each block that was ever read."""

    @property
    def name(self) -> str:
        return self._store.name

    @property
    def size(self) -> int:
        return self._store.size

    def read(self, offset: int, length: int) -> bytes:
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
        """A function to be called after ``patches`` were written: it reads all blocks once more.

        A counterfeit disk may write anywhere, and the patches depend on all blocks that were read:
        partition table, boot sector, allocation tables and directories.

        The function raises:
            ReadBackDiffersError: something else than the patches has changed.
            StoreFailedError: the disk cannot be read.
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


def find_card(node: Path, permissions: Permissions = NO_PERMISSIONS) -> Assessment:
    """The card that ``node`` names, checked like a target of a write.

    It may be of any size: the image on it is proof enough.

    Raises:
        TargetRefusedError: with every reason at once.
        ImageError: it does not hold an image.
    """
    disk = find_disk(node)
    permissions = replace(permissions, max_size=None, virtual=True)

    def require(sector_size: int) -> Assessment:
        card = assess(disk, image_sector_size=sector_size, permissions=permissions)
        require_writable(card)
        return card

    try:
        with open_for_reading(node) as image:
            sector_size = read_table(image.source).sector_size
    except ImageError:
        # A reason not to write it at all is more important.
        require(disk.logical_sector_size)
        raise
    return require(sector_size)


@contextmanager
def open_card(card: Assessment) -> Iterator[EditableImage]:
    """The disk that was confirmed as ``card``, open for a commit until the block ends.

    An earlier edit of it that was cut off is recovered first.

    Raises:
        TargetRefusedError: it is not the disk that was confirmed any more, or is in use.
        EditError: an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_disk(card.disk) as medium:
        store = CardStore(medium)
        warnings = recover_records(card.disk, store)
        source = CardSource(store)
        yield EditableImage(
            source,
            Container.BLOCK_DEVICE,
            warnings=warnings,
            rereads=store.rereads,
            store=store,
            find_record=partial(record_of, card.disk),
            watch=source.require_only,
        )


def edit_card(
    card: Assessment,
    edits: Sequence[Edit],
    *,
    keep_fingerprint: bool = False,
    repair: bool = True,
) -> EditReport:
    """Make ``edits``, in their order, in the boot partition of ``card``, wholly or not at all.

    Raises:
        ImageError: it does not hold an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made; none was.
        TargetRefusedError, WriteError: as `open_card`.
        WriteError: writing failed; the message states what the card holds.
    """
    with open_card(card) as image:
        return edit_opened(
            image, card.disk.node, edits, keep_fingerprint=keep_fingerprint, repair=repair
        )
