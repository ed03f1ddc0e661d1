"""Deal with an edit that a crash or a kill had cut off."""

import os
from enum import StrEnum
from pathlib import Path

from balenaflash.errors import WriteError
from balenaflash.image.rewrite import (
    NeitherOldNorNewError,
    ReadBackDiffersError,
    is_wholly_new,
    restore,
)
from balenaflash.image.undo import (
    UndoRecord,
    cannot_undo,
    read_record,
    remove_record,
    undo_path,
)


class Recovery(StrEnum):
    """What became of an edit that a crash or a kill had cut off."""

    UNDONE = "undone"
    """The image is as it was before the edit."""

    COMPLETE = "complete"
    """All of the edit had been written; the image is as it was to be."""

    @property
    def sentence(self) -> str:
        """What the user should know of it."""
        if self is Recovery.UNDONE:
            return "An earlier edit had been cut off; it was undone."
        return "An earlier edit had been cut off after its last byte; it is complete."


def settle(path: Path, descriptor: int) -> Recovery | None:
    """Deal with the undo record of the image that is open, and locked, as ``descriptor``.

    Raises:
        EditError: it cannot be undone; nothing was touched.
        WriteError: putting the old bytes back failed; the record stays.
    """
    status = os.fstat(descriptor)
    try:
        record = read_record(path, status.st_uid)
    except FileNotFoundError:
        return None
    recovery = None
    if record is not None:
        if record.image_size != status.st_size:
            raise cannot_undo(path, "its size is another one now")
        recovery = _make_whole(path, descriptor, record)
    discard_record(path)
    return recovery


def discard_record(path: Path) -> None:
    """Remove the record of an image that is whole."""
    try:
        remove_record(path)
    except OSError as error:
        raise WriteError(
            f"{path}: is whole, but its undo record cannot be removed: {error.strerror}",
            code="undo-record-stays",
            hint=f"Remove {undo_path(path)}.",
        ) from error


def _make_whole(path: Path, descriptor: int, record: UndoRecord) -> Recovery:
    """Make the image wholly new if it already is, wholly old if not, on the medium too."""
    try:
        if is_wholly_new(descriptor, record):
            os.fsync(descriptor)
            return Recovery.COMPLETE
        restore(descriptor, record)
    except NeitherOldNorNewError as error:
        reason = f"byte {error.offset} and those after it were changed by something else since"
        raise cannot_undo(path, reason) from error
    except OSError as error:
        raise _undo_failed(path, error.strerror or "unknown error") from error
    except ReadBackDiffersError as error:
        reason = f"byte {error.offset} reads back otherwise than written"
        raise _undo_failed(path, reason) from error
    return Recovery.UNDONE


def _undo_failed(path: Path, reason: str) -> WriteError:
    return WriteError(
        f"{path}: an edit of it was cut off, and undoing it failed: {reason}",
        code="undo-failed",
        hint="The next command that opens it tries again.",
    )
