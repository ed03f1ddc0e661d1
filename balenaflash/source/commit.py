"""Rewrite an image in place, or recover it: at any moment wholly old or wholly new.

What is about to be replaced goes into an undo record elsewhere, for a file beside it, onto the
medium; then the volume is marked as being edited; then the changed sectors are written, flushed
and read back; then the mark and the record are removed. Whoever opens the image next and finds a
record deals with it first (`balenaflash.source.opening`). Whoever finds the mark and no record,
since the image was moved without it, knows that it is half-edited.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from pathlib import Path

from balenaflash.errors import EditError, VerificationError, WriteError
from balenaflash.rereading import Rereads
from balenaflash.source.base import Source
from balenaflash.source.container.decoder import Container
from balenaflash.source.layers import Patch, in_order
from balenaflash.source.undo import (
    MAX_REPLACEMENT,
    EditMark,
    FileStore,
    ForeignRecordError,
    MarkedStore,
    ReadBackDiffersError,
    RecordFile,
    Replacement,
    Store,
    StoreFailedError,
    UndoRecord,
    cannot_undo,
    open_record,
    record_beside,
    remove_record,
    sector_digest,
    sector_slices,
    write_record,
)
from balenaflash.units import MIB, SECTOR_SIZE, Extent, align_down, align_up

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
        first = align_down(run.offset, unit)
        last = align_up(run.extent.end, unit)
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


class Recovery(StrEnum):
    """What became of an edit that a crash or a kill had cut off."""

    UNDONE = "undone"
    """The image is as it was before the edit."""

    COMPLETE = "complete"
    """All of the edit had been written; the image is as it was to be."""

    MAP_SET_ASIDE = "map-set-aside"
    """Likewise, but for a block map beside it, which was not true any more."""

    UNFINISHED = "unfinished"
    """The record was never finished, so nothing of the edit had been written."""

    STALE = "stale"
    """The image is whole, and not the one that the record is of."""

    FOREIGN = "foreign"
    """The record is somebody else's; it stays where it is."""

    @property
    def sentence(self) -> str:
        """What the user should know of it."""
        return _SENTENCES[self]


_CUT_OFF = "An earlier edit had been cut off"
_SENTENCES = {
    Recovery.UNDONE: f"{_CUT_OFF}; it was undone.",
    Recovery.COMPLETE: f"{_CUT_OFF} after its last byte; it is complete.",
    Recovery.MAP_SET_ASIDE: f"{_CUT_OFF} after its last byte; it is complete. A block map beside "
    "the image could not be kept true of it; if it is surely its own, its name now ends in .stale.",
    Recovery.UNFINISHED: f"{_CUT_OFF} before it changed anything; its unfinished undo record was "
    "removed.",
    Recovery.STALE: "The undo record of an edit that was cut off was found, and the image has been "
    "replaced or changed since; the record was removed.",
    Recovery.FOREIGN: "An undo record of another user lies where that of an edit would; it is "
    "ignored.",
}


def settle(
    file: RecordFile, store: Store, finish: Callable[[UndoRecord], bool] = lambda _record: True
) -> Recovery | None:
    """Deal with the undo record of an image that is open, and locked, as ``store``.

    ``finish`` is called with the record of an edit that is complete, to bring up to date what
    lies beside the image; it returns whether that is true of the image now.

    Raises:
        EditError: it cannot be undone; nothing was touched.
        WriteError: putting the old bytes back failed; the record stays.
    """
    try:
        with open_record(file, store.size) as record:
            recovery = Recovery.UNFINISHED
            if record is not None:
                recovery = _make_whole(file, store, record)
                if recovery is Recovery.COMPLETE and not finish(record):
                    recovery = Recovery.MAP_SET_ASIDE
    except FileNotFoundError:
        return None
    except ForeignRecordError:
        return Recovery.FOREIGN
    discard_record(file)
    return recovery


def put_back(store: Store, record: UndoRecord) -> None:
    """Make the image wholly old; errors as `restore`."""
    marked = MarkedStore(store, record.mark)
    if not marked.is_marked:  # the edit had ended, and something after it failed
        marked.begin()
    restore(marked, record)
    marked.end(undone=True)


def discard_record(file: RecordFile) -> None:
    """Remove the record of an image that is whole."""
    try:
        remove_record(file)
    except OSError as error:
        raise WriteError(
            f"{file.subject}: is whole, but its undo record cannot be removed: {error.strerror}",
            code="undo-record-stays",
            hint=f"Remove {file.path}.",
        ) from error


def _make_whole(file: RecordFile, store: Store, record: UndoRecord) -> Recovery:
    """Make the image wholly new if it already is, wholly old if not, on the medium too."""
    try:
        # An edit that has begun and not ended is marked: this image is whole, or another one.
        is_whole = record.mark is not None and not MarkedStore(store, record.mark).is_marked
        if not record.is_finished and (is_whole or record.mark is None):
            return Recovery.UNFINISHED
        try:
            return _restore(file, store, record)
        except EditError:
            if is_whole:
                return Recovery.STALE
            raise
    except StoreFailedError as error:
        raise undo_failed(file, error.reason) from error
    except ReadBackDiffersError as error:
        reason = f"byte {error.offset} reads back otherwise than written"
        raise undo_failed(file, reason) from error


def _restore(file: RecordFile, store: Store, record: UndoRecord) -> Recovery:
    if not record.is_finished:
        raise cannot_undo(file, f"{file.path} was cut short")
    if record.image_size != store.size:
        raise cannot_undo(file, "its size is another one now")
    marked = MarkedStore(store, record.mark)
    try:
        state = find_state(marked, record)
    except NeitherOldNorNewError as error:
        reason = f"byte {error.offset} and those after it were changed by something else since"
        raise cannot_undo(file, reason) from error
    if state is EditState.NEW:
        marked.flush()
        marked.end(undone=False)
        return Recovery.COMPLETE
    if state is EditState.MIXED or marked.is_marked:
        put_back(store, record)
    return Recovery.UNDONE


def undo_failed(file: RecordFile, reason: str) -> WriteError:
    """The error for an interrupted edit that is still to be undone."""
    return WriteError(
        f"{file.subject}: an edit of it was cut off, and undoing it failed: {reason}",
        code="undo-failed",
        hint=f"{file.undone_by[0].upper()}{file.undone_by[1:]} tries again.",
    )


@dataclass(frozen=True, slots=True)
class CommitReport:
    """What a commit wrote."""

    extents: tuple[Extent, ...]
    """The ranges of the image that changed, in order; empty when nothing had to."""

    @property
    def size(self) -> int:
        """Bytes written to the image."""
        return sum(extent.size for extent in self.extents)

    @property
    def sectors(self) -> int:
        """Sectors of 512 bytes in which something changed."""
        count, last = 0, -1
        for extent in self.extents:
            first = max(extent.start // SECTOR_SIZE, last + 1)
            last = (extent.end - 1) // SECTOR_SIZE
            count += last - first + 1
        return count


@dataclass(frozen=True, slots=True)
class Commit:
    """How an edit is committed."""

    mark: EditMark | None = None
    """Where it is marked; ``None`` leaves no trace of it but the undo record."""

    prove: Callable[[], None] = lambda: None
    """Called when all is written and read back; raises what `write_runs` does for more."""

    finish: Callable[[], None] = lambda: None
    """Called when all is written and read back, while a kill still leaves the record behind."""


PLAIN = Commit()


@dataclass(frozen=True, slots=True)
class ReadableImage:
    """An image that nobody edits while it is open."""

    source: Source
    """What it holds."""

    container: Container
    """What it is stored in."""

    member: str | None
    """Its name in a container that has members."""

    recovery: Recovery | None
    """What became of an earlier edit that had been cut off; ``None`` if there was none."""

    require_unchanged: Callable[[], None] = field(repr=False)
    """Raises ``ImageError`` if its file was changed since it was opened; cheap.

    Whoever reads to the end has it from ``source``, of a block device as well.
    """

    rereads: Rereads = field(default_factory=Rereads, kw_only=True)
    """Reads of what it is stored on that had to be repeated."""

    late_warnings: Sequence[str] = field(default=(), kw_only=True)
    """What turned out about its container while it was read; complete at its end."""

    @property
    def reading_warnings(self) -> tuple[str, ...]:
        """Warnings about reading it, a sentence each; complete when it has been read."""
        return (*self.rereads.warnings(self.source.name), *self.late_warnings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about opening it, a sentence each."""
        return (self.recovery.sentence,) if self.recovery else ()

    def preview(self, patches: Sequence[Patch]) -> CommitReport:
        """What a commit of ``patches`` would write; nothing is."""
        runs = changed_runs(self.source, patches)
        return CommitReport(tuple(run.extent for run in runs))


@dataclass(frozen=True, slots=True)
class EditableImage(ReadableImage):
    """An image file open for a change, locked until it is closed."""

    path: Path
    descriptor: int
    """The open file, for reading and writing."""

    def commit(self, patches: Sequence[Patch], how: Commit = PLAIN) -> CommitReport:
        """Write what ``patches`` change, as `commit`.

        Of the file, only these bytes and its time of change differ afterwards.

        Raises:
            ImageError: another program has changed it since it was opened. Nothing was written.
        """
        self.require_unchanged()
        file = record_beside(self.path, self.descriptor)
        return commit(self.source, FileStore(self.descriptor), file, patches, how)


def commit(
    source: Source,
    store: Store,
    file: RecordFile,
    patches: Sequence[Patch],
    how: Commit = PLAIN,
) -> CommitReport:
    """Write what ``patches`` change, read it back, and make it last.

    ``source`` is what ``store`` holds; nobody else writes to it. ``file`` is where the undo record
    is kept meanwhile. ``prove`` is called when all was read back, and raises as `write_runs`.

    Raises:
        EditError: the undo record cannot be made; nothing was touched.
        WriteError: writing failed; the message says whether all is as it was, or a later command
            is to undo the edit.
        VerificationError: what was read back differs; likewise.
    """
    runs = tuple(changed_runs(source, patches))
    if not runs:
        return CommitReport(())
    mark, marked = how.mark, MarkedStore(store, how.mark)
    unmarked = tuple(_without_mark(run, mark) for run in runs)
    recorded = sorted(
        (*unmarked, *_around_mark(source, mark, store.alignment, unmarked)),
        key=lambda run: run.offset,
    )
    replacements = (
        Replacement.between(run.offset, source.read(run.offset, len(run.new)), run.new)
        for run in recorded
    )
    write_record(file, store.size, mark, len(recorded), replacements)
    try:
        marked.begin()
        write_runs(marked, unmarked)
        marked.end(undone=False)
        how.prove()
    except KeyboardInterrupt:
        _undo(store, file)
        raise
    except StoreFailedError as error:
        message = f"{file.subject}: {error.reason}; {_undo(store, file)}"
        raise WriteError(message, code="edit-write-failed") from error
    except ReadBackDiffersError as error:
        message = f"{file.subject}: reads back otherwise than written at byte {error.offset}"
        raise VerificationError(f"{message}; {_undo(store, file)}") from error
    how.finish()
    discard_record(file)
    return CommitReport(tuple(run.extent for run in runs))


def _without_mark(run: Run, mark: EditMark | None) -> Run:
    """``run`` with the byte of the mark as it was: what becomes of it is written at the end."""
    if mark is None or not run.extent.start <= mark.offset < run.extent.end:
        return run
    new = bytearray(run.new)
    new[mark.offset - run.offset] = mark.before
    return Run(run.offset, memoryview(new))


def _around_mark(
    source: Source, mark: EditMark | None, unit: int, runs: Sequence[Run]
) -> Iterator[Run]:
    """The rest of the sector that the mark is in, as it is: it is written with the mark.

    Should that go wrong, it has to be undone like all else. Of a file only one byte is written.
    """
    if mark is None or unit == 1:
        return
    first = align_down(mark.offset, unit)
    for start in range(first, first + unit, SECTOR_SIZE):
        sector = Extent(start, start + SECTOR_SIZE)
        if not any(run.extent.overlaps(sector) for run in runs):
            yield Run(start, memoryview(source.read(start, SECTOR_SIZE)))


def _undo(store: Store, file: RecordFile) -> str:
    """Put back what the record holds, and say how that went."""
    try:
        with open_record(file, store.size) as record:
            if record is not None and record.is_finished:
                put_back(store, record)
        remove_record(file)
    except (OSError, EditError, StoreFailedError, ReadBackDiffersError):
        return f"it is half-edited, and {file.undone_by} tries to undo that"
    return "it is as it was before"
