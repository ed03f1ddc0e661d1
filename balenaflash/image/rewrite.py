"""Rewrite ranges of an open image file, and see that they arrived."""

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from balenaflash.extent import MIB, Extent
from balenaflash.image.patch import Patch, in_order
from balenaflash.image.source import Source
from balenaflash.image.undo import Replacement, UndoRecord, sector_digest, sector_slices

_RUN_SIZE = MIB
"""Bytes handled at a time, so that a large edit needs no copy of itself."""


class ReadBackDiffersError(Exception):
    """The medium does not hold what it accepted."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset
        """Start of the range that differs, in bytes from the start of the image."""


class NeitherOldNorNewError(Exception):
    """The image holds at ``offset`` what no cut-off edit can have left there."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


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
        for start in range(0, len(data), _RUN_SIZE):
            new = data[start : start + _RUN_SIZE]
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


def write_runs(descriptor: int, runs: Iterable[Run]) -> None:
    """Write ``runs``, flush them, and compare them with what the medium then holds.

    Raises:
        OSError: the kernel refused; some of the runs may be written.
        ReadBackDiffersError: it accepted, and the medium holds something else.
    """
    runs = tuple(runs)
    for run in runs:
        _write(descriptor, run.offset, run.new)
    os.fsync(descriptor)
    for run in runs:
        _drop_cache(descriptor, run.extent)
        if _read(descriptor, run.offset, len(run.new)) != run.new:
            raise ReadBackDiffersError(run.offset)


def restore(descriptor: int, record: UndoRecord) -> None:
    """Put the old bytes of ``record`` back where the image holds others; errors as `write_runs`.

    Sectors that already hold them are not written: on a full disk, writing into a hole that was
    never filled would fail again.
    """
    runs: list[Run] = []
    for replacement in record.replacements:
        current = _read(descriptor, replacement.offset, len(replacement.old))
        if current != replacement.old:
            old = memoryview(replacement.old)
            runs += _differing_runs(replacement.offset, current, old)
    write_runs(descriptor, runs)


def is_wholly_new(descriptor: int, record: UndoRecord) -> bool:
    """Whether every sector of the edit of ``record`` is in the image; else each is new or old.

    Raises:
        NeitherOldNorNewError: something else has been written there since, or this is another
            image.
    """
    # All of them are looked at, also after an old one.
    are_new = [_is_new(descriptor, replacement) for replacement in record.replacements]
    return all(are_new)


def _is_new(descriptor: int, replacement: Replacement) -> bool:
    current = _read(descriptor, replacement.offset, len(replacement.old))
    is_new = True
    for piece, digest in replacement.pieces():
        if current[piece] == replacement.old[piece]:
            is_new = False
        elif sector_digest(current[piece]) != digest:
            raise NeitherOldNorNewError(replacement.offset + piece.start)
    return is_new


def _write(descriptor: int, offset: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """The bytes ``[offset, offset + length)``, or fewer where the file ends."""
    blocks = []
    while length > 0:
        block = os.pread(descriptor, length, offset)
        if not block:
            break
        blocks.append(block)
        offset += len(block)
        length -= len(block)
    return b"".join(blocks)


def _drop_cache(descriptor: int, extent: Extent) -> None:
    """Let the next read come from the medium, which works for flushed pages that are not mapped.

    The kernel leaves pages alone that lie only partly in the range (posix_fadvise(2)).
    """
    start = extent.start // mmap.PAGESIZE * mmap.PAGESIZE
    length = -(-extent.end // mmap.PAGESIZE) * mmap.PAGESIZE - start
    os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
