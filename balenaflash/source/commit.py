"""Rewrite an image in place, or recover it: at any moment wholly old or wholly new.

The bytes to be replaced go into an undo record outside the image, for a file beside it, and onto
the medium. Then the volume is marked as being edited; the changed sectors are written, flushed
and read back; the mark and the record are removed. The next program that opens the image and
finds a record deals with it first (`balenaflash.source.opening`). A mark without a record, on an
image that was moved, shows that the image is half-edited.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from operator import attrgetter

from balenaflash.errors import EditError, VerificationError, WriteError
from balenaflash.rereading import Rereads
from balenaflash.source.base import Source
from balenaflash.source.container.decoder import Container
from balenaflash.source.layers import Patch, in_order
from balenaflash.source.undo_record import (
    MAX_REPLACEMENT,
    EditMark,
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
    remove_record,
    sector_digest,
    sector_slices,
    write_record,
)
from balenaflash.units import MIB, SECTOR_SIZE, Extent, align_down, align_up

_BATCH_SIZE = 16 * MIB
"""Bytes that are restored at a time, so that no record fills the memory."""


class NeitherOldNorNewError(Exception):
    """The image holds bytes at ``offset`` that no cut-off edit can have left there."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class EditState(Enum):
    """How much of an edit is in an image: nothing, a part, or all."""

    OLD = auto()
    MIXED = auto()
    NEW = auto()


@dataclass(frozen=True, slots=True)
class SectorRun:
    """Consecutive sectors that all change."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    new: memoryview
    """The new content; the first and the last sector may be in part."""

    @property
    def extent(self) -> Extent:
        """Range of the image that changes."""
        return Extent(self.offset, self.offset + len(self.new))


def changed_runs(source: Source, patches: Iterable[Patch]) -> Iterator[SectorRun]:
    """The sectors of ``patches`` that differ from those of ``source``, in order."""
    for patch in in_order(patches, source.size):
        data = memoryview(patch.data)
        for start in range(0, len(data), MAX_REPLACEMENT):
            new = data[start : start + MAX_REPLACEMENT]
            old = source.read(patch.offset + start, len(new))
            if old != new:
                yield from _differing_runs(patch.offset + start, old, new)


def _differing_runs(offset: int, old: bytes, new: memoryview) -> Iterator[SectorRun]:
    start = end = 0
    for piece in sector_slices(offset, len(old)):
        if old[piece] == new[piece]:
            continue
        if piece.start > end:
            if start < end:
                yield SectorRun(offset + start, new[start:end])
            start = piece.start
        end = piece.stop
    yield SectorRun(offset + start, new[start:end])


def write_runs(store: Store, runs: Iterable[SectorRun]) -> None:
    """Write ``runs``, flush them, read them back from the medium and compare.

    Raises:
        StoreFailedError: some of the runs may be written.
        ReadBackDiffersError: the medium accepted them, and holds other bytes.
    """
    runs = tuple(_widened(store, runs))
    for run in runs:
        store.write(run.offset, run.new)
    store.flush()
    for run in runs:
        if store.read_back(run.offset, len(run.new)) != run.new:
            raise ReadBackDiffersError(run.offset)


def _widened(store: Store, runs: Iterable[SectorRun]) -> Iterator[SectorRun]:
    """``runs`` with the rest of the store's own sectors, written and compared as it is."""
    unit = store.alignment
    start, content = 0, bytearray()
    for run in runs:
        first = align_down(run.offset, unit)
        last = align_up(run.extent.end, unit)
        if first >= start + len(content):
            if content:
                yield SectorRun(start, memoryview(bytes(content)))
            start, content = first, bytearray()
            if Extent(first, last) == run.extent:
                yield run
                continue
        done = start + len(content)
        content += store.read(done, last - done) if last > done else b""
        content[run.offset - start : run.extent.end - start] = run.new
    if content:
        yield SectorRun(start, memoryview(bytes(content)))


def _write_old_bytes(store: Store, record: UndoRecord) -> None:
    """Write the old bytes of ``record`` where the image holds others; errors as `write_runs`.

    Sectors that already hold them are not written: on a full disk, writing into a hole that was
    never filled would fail again.
    """
    runs: list[SectorRun] = []
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
        NeitherOldNorNewError: another program has written there since, or it is another image.
        StoreFailedError: the image cannot be read.
    """
    # All replacements are examined, even if the first two show that it is mixed.
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
            # A recorded sector that does not change shows nothing.
            if sector_digest(current[piece]) != digest:
                yield False
        elif sector_digest(current[piece]) == digest:
            yield True
        else:
            raise NeitherOldNorNewError(replacement.offset + piece.start)


_CUT_OFF = "An earlier edit was cut off"


class Recovery(StrEnum):
    """Outcome of dealing with an edit that a crash or a kill had cut off, as a sentence."""

    UNDONE = f"{_CUT_OFF}; it was undone."
    COMPLETE = f"{_CUT_OFF} after its last byte; it is complete."
    MAP_SET_ASIDE = (
        f"{_CUT_OFF} after its last byte; it is complete. A block map beside the image could not "
        "be updated; if it certainly belongs to the image, its name now ends in .stale."
    )
    UNFINISHED = f"{_CUT_OFF} before it changed anything; its unfinished undo record was removed."
    STALE = (
        "The undo record of an edit that was cut off was removed: the image has been replaced or "
        "changed since."
    )
    FOREIGN = "An undo record that belongs to another user was ignored."


def recover_image(
    file: RecordFile, store: Store, finish: Callable[[UndoRecord], bool] = lambda _record: True
) -> Recovery | None:
    """Deal with the undo record of an image that is open, and locked, as ``store``.

    ``finish`` is called with the record of an edit that is complete, to update the block map
    beside the image. It returns True if that map is true of the image now.

    Raises:
        EditError: the edit cannot be undone; nothing was touched.
        WriteError: writing the old bytes failed; the record stays.
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
    _discard_record(file)
    return recovery


def _discard_record(file: RecordFile) -> None:
    """Remove the record of an image that is whole."""
    try:
        remove_record(file)
    except OSError as error:
        raise WriteError(
            f"{file.subject}: is whole, but its undo record cannot be removed: {error.strerror}",
            code="undo-record-stays",
            hint=f"Remove {file.path}.",
        ) from error


def _put_back(store: Store, record: UndoRecord) -> None:
    """Make the image wholly old; errors as `_write_old_bytes`."""
    marked = MarkedStore(store, record.mark)
    if not marked.is_marked:  # the edit had ended, and something after it failed
        marked.begin()
    _write_old_bytes(marked, record)
    marked.end(undone=True)


def _make_whole(file: RecordFile, store: Store, record: UndoRecord) -> Recovery:
    """Flush the image if it is wholly new already; make it wholly old if not."""
    try:
        # An edit that has begun and not ended is marked. Without the mark the image is whole, or
        # another one.
        is_whole = record.mark is not None and not MarkedStore(store, record.mark).is_marked
        if not record.is_finished and (is_whole or record.mark is None):
            return Recovery.UNFINISHED
        try:
            return _make_old_or_new(file, store, record)
        except EditError:
            if is_whole:
                return Recovery.STALE
            raise
    except StoreFailedError as error:
        raise undo_failed(file, error.reason) from error
    except ReadBackDiffersError as error:
        reason = f"byte {error.offset} reads back differently"
        raise undo_failed(file, reason) from error


def _make_old_or_new(file: RecordFile, store: Store, record: UndoRecord) -> Recovery:
    if not record.is_finished:
        raise cannot_undo(file, f"{file.path} was cut short")
    if record.image_size != store.size:
        raise cannot_undo(file, "its size has changed")
    marked = MarkedStore(store, record.mark)
    try:
        state = find_state(marked, record)
    except NeitherOldNorNewError as error:
        reason = f"another program has changed it since, at byte {error.offset}"
        raise cannot_undo(file, reason) from error
    if state is EditState.NEW:
        marked.flush()
        marked.end(undone=False)
        return Recovery.COMPLETE
    if state is EditState.MIXED or marked.is_marked:
        _put_back(store, record)
    return Recovery.UNDONE


def undo_failed(file: RecordFile, reason: str) -> WriteError:
    """The error for an interrupted edit that remains to be undone."""
    return WriteError(
        f"{file.subject}: an edit of it was cut off, and undoing it failed: {reason}",
        code="undo-failed",
        hint=f"{file.undone_by[0].upper()}{file.undone_by[1:]} tries again.",
    )


@dataclass(frozen=True, slots=True)
class CommitReport:
    """The ranges of an image that a commit wrote, or would write."""

    extents: tuple[Extent, ...]
    """In order; empty if the image holds the new bytes already."""

    @property
    def size(self) -> int:
        """Bytes written to the image."""
        return sum(extent.size for extent in self.extents)

    @property
    def sectors(self) -> int:
        """Number of sectors of 512 bytes in which something changed."""
        count, last = 0, -1
        for extent in self.extents:
            first = max(extent.start // SECTOR_SIZE, last + 1)
            last = (extent.end - 1) // SECTOR_SIZE
            count += last - first + 1
        return count


@dataclass(frozen=True, slots=True)
class ReadableImage:
    """An open image, which no edit changes meanwhile."""

    source: Source
    container: Container
    member: str | None = None
    """Name of the image in a container with members."""

    warnings: tuple[str, ...] = ()
    """Warnings about opening the image, a sentence each, such as a `Recovery`."""

    require_unchanged: Callable[[], None] = field(default=lambda: None, repr=False)
    """Raises ``ImageError`` if the image's file was changed since it was opened; cheap.

    A reader that reads ``source`` to its end gets that error from there, for a block device too.
    """

    rereads: Rereads = field(default_factory=Rereads)
    """Reads of the file or device that had to be repeated."""

    late_warnings: Sequence[str] = ()
    """Warnings about the container, found while it was read; complete at its end."""

    @property
    def reading_warnings(self) -> tuple[str, ...]:
        """Warnings about reading the image, a sentence each; complete when it was read."""
        return (*self.rereads.warnings(self.source.name), *self.late_warnings)

    def preview(self, patches: Sequence[Patch]) -> CommitReport:
        """The report of a commit of ``patches``; nothing is written."""
        runs = changed_runs(self.source, patches)
        return CommitReport(tuple(run.extent for run in runs))


@dataclass(frozen=True, slots=True, kw_only=True)
class EditableImage(ReadableImage):
    """An image open for an edit, in a file or on a card, and in use by nothing else."""

    store: Store
    """The bytes of ``source``, for writing."""

    find_record: Callable[[], RecordFile]
    """Returns the place of the undo record."""

    watch: Callable[[Sequence[Patch]], Callable[[], None]] = lambda _patches: lambda: None
    """Called before patches are committed; returns a check for after that.

    The check raises like `write_runs` if anything but the patches has changed.
    """

    def commit(
        self,
        patches: Sequence[Patch],
        mark: EditMark | None = None,
        finish: Callable[[], None] = lambda: None,
    ) -> CommitReport:
        """Write the changes of ``patches``, flush them and read them back.

        Only these bytes differ afterwards, and the time of change of a file. Without a ``mark``
        the undo record is the only trace of the edit. ``finish`` is called after everything was
        read back, while a kill still leaves the record.

        Raises:
            ImageError: another program has changed the file since it was opened. Nothing was
                written.
            EditError: the undo record cannot be made; nothing was touched.
            WriteError: writing failed. The message says if everything is as it was, or if a later
                command has to undo the edit.
            VerificationError: the bytes read back differ; likewise.
        """
        self.require_unchanged()
        file, check = self.find_record(), self.watch(patches)
        runs = tuple(changed_runs(self.source, patches))
        if not runs:
            return CommitReport(())
        marked = MarkedStore(self.store, mark)
        unmarked = tuple(_without_mark(run, mark) for run in runs)
        _record(file, self, mark, unmarked)
        try:
            marked.begin()
            write_runs(marked, unmarked)
            marked.end(undone=False)
            check()
        except KeyboardInterrupt:
            _undo(self.store, file)
            raise
        except StoreFailedError as error:
            message = f"{file.subject}: {error.reason}; {_undo(self.store, file)}"
            raise WriteError(message, code="edit-write-failed") from error
        except ReadBackDiffersError as error:
            message = f"{file.subject}: reads back differently at byte {error.offset}"
            raise VerificationError(f"{message}; {_undo(self.store, file)}") from error
        finish()
        _discard_record(file)
        return CommitReport(tuple(run.extent for run in runs))


def _record(
    file: RecordFile, image: EditableImage, mark: EditMark | None, runs: Sequence[SectorRun]
) -> None:
    """Keep the bytes that ``runs`` and the mark are going to replace."""
    around = _around_mark(image.source, mark, image.store.alignment, runs)
    recorded = sorted((*runs, *around), key=attrgetter("offset"))
    read = image.source.read
    replacements = (
        Replacement.between(run.offset, read(run.offset, len(run.new)), run.new) for run in recorded
    )
    write_record(file, image.store.size, mark, len(recorded), replacements)


def _without_mark(run: SectorRun, mark: EditMark | None) -> SectorRun:
    """``run`` with the marked byte as before the edit; its new value is written at the end."""
    if mark is None or not run.extent.contains(mark.offset):
        return run
    new = bytearray(run.new)
    new[mark.offset - run.offset] = mark.before
    return SectorRun(run.offset, memoryview(new))


def _around_mark(
    source: Source, mark: EditMark | None, unit: int, runs: Sequence[SectorRun]
) -> Iterator[SectorRun]:
    """The rest of the store's sector with the mark, unchanged: it is written with the mark.

    If that fails, it has to be undone like the rest. In a file only the one byte is written.
    """
    if mark is None or unit == 1:
        return
    first = align_down(mark.offset, unit)
    for start in range(first, first + unit, SECTOR_SIZE):
        sector = Extent(start, start + SECTOR_SIZE)
        if not any(run.extent.overlaps(sector) for run in runs):
            yield SectorRun(start, memoryview(source.read(start, SECTOR_SIZE)))


def _undo(store: Store, file: RecordFile) -> str:
    """Undo the edit; the outcome in words for a message."""
    try:
        with open_record(file, store.size) as record:
            if record is not None and record.is_finished:
                _put_back(store, record)
        remove_record(file)
    except (OSError, EditError, StoreFailedError, ReadBackDiffersError):
        return f"it is half-edited, and {file.undone_by} tries to undo that"
    return "it is as it was before"
