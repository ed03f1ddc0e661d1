"""Change an image so that it is, at any moment, wholly old or wholly new.

What is about to be replaced goes into an undo record elsewhere, for a file beside it, onto the
medium; then the volume is marked as being edited; then the changed sectors are written, flushed
and read back; then the mark and the record are removed. Whoever opens the image next and finds a
record deals with it first (`balenaflash.image.opening`). Whoever finds the mark and no record,
since the image was moved without it, knows that it is half-edited.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balenaflash.errors import EditError, VerificationError, WriteError
from balenaflash.extent import SECTOR_SIZE, Extent
from balenaflash.image.commit.mark import EditMark, MarkedStore
from balenaflash.image.commit.recovery import Recovery, discard_record, put_back
from balenaflash.image.commit.rewrite import Run, changed_runs, write_runs
from balenaflash.image.commit.store import (
    FileStore,
    ReadBackDiffersError,
    Store,
    StoreFailedError,
)
from balenaflash.image.commit.undo import (
    RecordFile,
    Replacement,
    open_record,
    record_beside,
    remove_record,
    write_record,
)
from balenaflash.image.container.kinds import Container
from balenaflash.image.patch import Patch
from balenaflash.image.source import Source
from balenaflash.rereading import Rereads


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
    first = mark.offset - mark.offset % unit
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
