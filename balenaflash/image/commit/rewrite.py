"""Rewrite ranges of an image, and see that they arrived."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from balenaflash.extent import MIB, Extent
from balenaflash.image.commit.store import ReadBackDiffersError, Store
from balenaflash.image.commit.undo import (
    MAX_REPLACEMENT,
    Replacement,
    UndoRecord,
    sector_digest,
    sector_slices,
)
from balenaflash.image.patch import Patch, in_order
from balenaflash.image.source import Source

_BATCH_SIZE = 16 * MIB
"""Bytes that are put back at a time, so that no record fills the memory."""


class NeitherOldNorNewError(Exception):
    """The image holds at ``offset`` what no cut-off edit can have left there."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class EditState(Enum):
    """How much of an edit is in an image."""

    OLD = auto()
    """Nothing."""

    MIXED = auto()
    NEW = auto()
    """All."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive sectors that all change."""

    offset: int
    """In bytes from the start of the image."""

    new: memoryview
    """What they are to hold; the first and the last may be part of a sector."""

    @property
    def extent(self) -> Extent:
        """The range that changes."""
        return Extent(self.offset, self.offset + len(self.new))


def changed_runs(source: Source, patches: Iterable[Patch]) -> Iterator[Run]:
    """Those sectors of ``patches`` that differ from what ``source`` holds, in order."""
    for patch in in_order(patches, source.size):
        data = memoryview(patch.data)
        for start in range(0, len(data), MAX_REPLACEMENT):
            new = data[start : start + MAX_REPLACEMENT]
            old = source.read(patch.offset + start, len(new))
            if old != new:
                yield from _differing_runs(patch.offset + start, old, new)


def _differing_runs(offset: int, old: bytes, new: memoryview) -> Iterator[Run]:
    start = end = 0
    for piece in sector_slices(offset, len(old)):
        if old[piece] == new[piece]:
            continue
        if piece.start > end:
            if start < end:
                yield Run(offset + start, new[start:end])
            start = piece.start
        end = piece.stop
    yield Run(offset + start, new[start:end])


def write_runs(store: Store, runs: Iterable[Run]) -> None:
    """Write ``runs``, flush them, and compare them with what the medium then holds.

    Raises:
        StoreFailedError: some of the runs may be written.
        ReadBackDiffersError: the medium accepted them, and holds something else.
    """
    runs = tuple(_widened(store, runs))
    for run in runs:
        store.write(run.offset, run.new)
    store.flush()
    for run in runs:
        if store.read_back(run.offset, len(run.new)) != run.new:
            raise ReadBackDiffersError(run.offset)


def _widened(store: Store, runs: Iterable[Run]) -> Iterator[Run]:
    """``runs`` with the rest of the store's own sectors, which is written as it is.

    Whatever is written is compared afterwards, so this is, too.
    """
    unit = store.alignment
    start, content = 0, bytearray()
    for run in runs:
        first = run.offset - run.offset % unit
        last = -(-run.extent.end // unit) * unit
        if first >= start + len(content):
            if content:
                yield Run(start, memoryview(bytes(content)))
            start, content = first, bytearray()
            if Extent(first, last) == run.extent:
                yield run
                continue
        done = start + len(content)
        content += store.read(done, last - done) if last > done else b""
        content[run.offset - start : run.extent.end - start] = run.new
    if content:
        yield Run(start, memoryview(bytes(content)))


def restore(store: Store, record: UndoRecord) -> None:
    """Put the old bytes of ``record`` back where the image holds others; errors as `write_runs`.

    Sectors that already hold them are not written: on a full disk, writing into a hole that was
    never filled would fail again.
    """
    runs: list[Run] = []
    size = 0
    for replacement in record.replacements():
        current = store.read(replacement.offset, len(replacement.old))
        if current != replacement.old:
            old = memoryview(replacement.old)
            runs += _differing_runs(replacement.offset, current, old)
            size += len(old)
        if size >= _BATCH_SIZE:
            write_runs(store, runs)
            runs, size = [], 0
    write_runs(store, runs)


def find_state(store: Store, record: UndoRecord) -> EditState:
    """How much of the edit of ``record`` is in the image.

    Raises:
        NeitherOldNorNewError: something else has been written there since, or this is another
            image.
        StoreFailedError: it cannot be read.
    """
    # All of them are looked at, also where the first two tell that it is mixed.
    found = {
        is_new for replacement in record.replacements() for is_new in _are_new(store, replacement)
    }
    if len(found) > 1:
        return EditState.MIXED
    return EditState.OLD if False in found else EditState.NEW


def _are_new(store: Store, replacement: Replacement) -> Iterator[bool]:
    current = store.read(replacement.offset, len(replacement.old))
    for piece, digest in replacement.pieces():
        if current[piece] == replacement.old[piece]:
            # What is recorded and does not change tells nothing.
            if sector_digest(current[piece]) != digest:
                yield False
        elif sector_digest(current[piece]) == digest:
            yield True
        else:
            raise NeitherOldNorNewError(replacement.offset + piece.start)
