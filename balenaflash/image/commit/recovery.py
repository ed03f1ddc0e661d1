"""Deal with an edit that a crash or a kill had cut off."""

from enum import StrEnum

from balenaflash.errors import WriteError
from balenaflash.image.commit.rewrite import (
    EditState,
    NeitherOldNorNewError,
    ReadBackDiffersError,
    find_state,
    restore,
)
from balenaflash.image.commit.store import Store, StoreFailedError
from balenaflash.image.commit.undo import (
    RecordFile,
    UndoRecord,
    cannot_undo,
    read_record,
    remove_record,
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


def settle(file: RecordFile, store: Store) -> Recovery | None:
    """Deal with the undo record of an image that is open, and locked, as ``store``.

    Raises:
        EditError: it cannot be undone; nothing was touched.
        WriteError: putting the old bytes back failed; the record stays.
    """
    try:
        record = read_record(file)
    except FileNotFoundError:
        return None
    recovery = None
    if record is not None:
        if record.image_size != store.size:
            raise cannot_undo(file, "its size is another one now")
        recovery = _make_whole(file, store, record)
    discard_record(file)
    return recovery


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
        if find_state(store, record) is EditState.NEW:
            store.flush()
            return Recovery.COMPLETE
        restore(store, record)
    except NeitherOldNorNewError as error:
        reason = f"byte {error.offset} and those after it were changed by something else since"
        raise cannot_undo(file, reason) from error
    except StoreFailedError as error:
        raise undo_failed(file, error.reason) from error
    except ReadBackDiffersError as error:
        reason = f"byte {error.offset} reads back otherwise than written"
        raise undo_failed(file, reason) from error
    return Recovery.UNDONE


def undo_failed(file: RecordFile, reason: str) -> WriteError:
    """The error for an interrupted edit that is still to be undone."""
    return WriteError(
        f"{file.subject}: an edit of it was cut off, and undoing it failed: {reason}",
        code="undo-failed",
        hint=f"{file.undone_by[0].upper()}{file.undone_by[1:]} tries again.",
    )
