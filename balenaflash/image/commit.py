"""Change an image file so that it is, at any moment, wholly old or wholly new.

What is about to be replaced goes into an undo record beside the image, onto the medium; then the
changed sectors are written, flushed and read back; then the record is removed. Whoever opens the
image next and finds a record deals with it first (`balenaflash.image.opening`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from balenaflash.errors import EditError, VerificationError, WriteError
from balenaflash.extent import SECTOR_SIZE, Extent
from balenaflash.image.patch import Patch
from balenaflash.image.recovery import Recovery, discard_record
from balenaflash.image.rewrite import ReadBackDiffersError, changed_runs, restore, write_runs
from balenaflash.image.source import FileSource
from balenaflash.image.undo import Replacement, read_record, remove_record, write_record


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
class ReadableImage:
    """An image that nobody edits while it is open."""

    source: FileSource
    """What it holds."""

    recovery: Recovery | None
    """What became of an earlier edit that had been cut off; ``None`` if there was none."""

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

    descriptor: int
    """The open file, for reading and writing."""

    def commit(self, patches: Sequence[Patch]) -> CommitReport:
        """Write what ``patches`` change, read it back, and make it last.

        Of the file, only these bytes and its time of change differ afterwards.

        Raises:
            EditError: the undo record cannot be made; the image was not touched.
            WriteError: writing failed; the message says whether the image is as it was, or the
                next command that opens it is to undo the edit.
            VerificationError: what was read back differs; likewise.
        """
        path = self.source.path
        runs = tuple(changed_runs(self.source, patches))
        if not runs:
            return CommitReport(())
        replacements = (
            Replacement.between(run.offset, self.source.read(run.offset, len(run.new)), run.new)
            for run in runs
        )
        write_record(path, self.descriptor, len(runs), replacements)
        try:
            write_runs(self.descriptor, runs)
        except KeyboardInterrupt:
            self._undo()
            raise
        except OSError as error:
            message = f"{path}: cannot be written: {error.strerror}; {self._undo()}"
            raise WriteError(message, code="edit-write-failed") from error
        except ReadBackDiffersError as error:
            message = f"{path}: reads back otherwise than written at byte {error.offset}"
            raise VerificationError(f"{message}; {self._undo()}") from error
        discard_record(path)
        return CommitReport(tuple(run.extent for run in runs))

    def _undo(self) -> str:
        """Put back what the record holds, and say how that went."""
        path = self.source.path
        try:
            record = read_record(path, os.fstat(self.descriptor).st_uid)
            if record is not None:
                restore(self.descriptor, record)
            remove_record(path)
        except (OSError, EditError, ReadBackDiffersError):
            return "it is half-edited, and the next command that opens it tries to undo that"
        return "it is as it was before"
