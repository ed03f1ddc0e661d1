"""Change the boot partition of a flashed card, or of any disk that holds an image.

Each read is made twice and compared: an edit writes back much of what it read, and finds in the
rest where to write. One bit wrong in one read would be on the disk for good.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from balenaflash.commands.card_records import record_of, settle_records
from balenaflash.commands.edit import EditReport, edit_opened
from balenaflash.edits.files import Edit
from balenaflash.errors import ImageError, WriteError
from balenaflash.formats.partitions.table import read_table
from balenaflash.rereading import Rereads
from balenaflash.source.base import RandomAccess
from balenaflash.source.commit import PLAIN, Commit, CommitReport, commit
from balenaflash.source.layers import Patch, lay_over
from balenaflash.source.opening import open_for_reading
from balenaflash.source.undo import ReadBackDiffersError, StoreFailedError
from balenaflash.targets.disk import open_disk
from balenaflash.targets.disks import Disk, find_disk
from balenaflash.targets.medium import Medium
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
        start = align_down(offset, unit)
        while start < end:
            stop = min(start + _BUFFER_SIZE, align_up(end, unit))
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


@dataclass(frozen=True, slots=True)
class Card:
    """A disk that holds an image and may be changed, as far as can be told without opening it."""

    assessment: Assessment

    @property
    def disk(self) -> Disk:
        """The disk itself."""
        return self.assessment.disk


@dataclass(frozen=True, slots=True)
class EditableCard:
    """A card open for a change, which nobody else uses or opens meanwhile."""

    source: CardSource
    """What it holds, read past the cache; of no use after a commit."""

    opening_warnings: tuple[str, ...]
    """Warnings about an earlier edit, a sentence each."""

    disk: Disk
    store: CardStore

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about opening and reading it, a sentence each."""
        return (*self.opening_warnings, *self.store.rereads.warnings(self.source.name))

    def commit(self, patches: Sequence[Patch], how: Commit = PLAIN) -> CommitReport:
        """Write what ``patches`` change, as `balenaflash.source.commit.commit`."""
        how = replace(how, prove=self.source.require_only(patches))
        return commit(self.source, self.store, record_of(self.disk), patches, how)


def find_card(node: Path, permissions: Permissions = NO_PERMISSIONS) -> Card:
    """The card that ``node`` names, checked as a target of writing is.

    It may be of any size: that it holds an image tells enough about it.

    Raises:
        TargetRefusedError: with every reason at once.
        ImageError: there is no image on it.
    """
    disk = find_disk(node)
    permissions = replace(permissions, max_size=None, virtual=True)
    try:
        with open_for_reading(node) as image:
            sector_size = read_table(image.source).sector_size
    except ImageError:
        # That it must not be written at all is what matters more.
        sector_size = disk.logical_sector_size
        require_writable(assess(disk, image_sector_size=sector_size, permissions=permissions))
        raise
    assessment = assess(disk, image_sector_size=sector_size, permissions=permissions)
    require_writable(assessment)
    return Card(assessment)


@contextmanager
def open_card(card: Card) -> Iterator[EditableCard]:
    """What was confirmed as ``card``, open for a commit until the block ends.

    An earlier edit of it that was cut off is dealt with first.

    Raises:
        TargetRefusedError: it is not what was confirmed any more, or somebody else has it.
        EditError: an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_disk(card.disk) as medium:
        store = CardStore(medium)
        warnings = settle_records(card.disk, store)
        yield EditableCard(CardSource(store), warnings, card.disk, store)


def edit_card(
    card: Card, edits: Sequence[Edit], *, keep_fingerprint: bool = False, repair: bool = True
) -> EditReport:
    """Make ``edits``, in their order, in the boot partition of ``card``, wholly or not at all.

    Raises:
        ImageError: it does not hold an image of balenaOS layout, or cannot be read.
        EditError: an edit cannot be made; none was.
        TargetRefusedError, WriteError: as `open_card`.
        WriteError: writing failed; the message says what state the card is in.
    """
    with open_card(card) as image:
        return edit_opened(
            image, card.disk.node, edits, keep_fingerprint=keep_fingerprint, repair=repair
        )
