"""Deal with an edit that a crash or a kill had cut off."""

from collections.abc import Callable
from enum import StrEnum

from balenaflash.errors import EditError, WriteError
from balenaflash.image.commit.mark import MarkedStore
from balenaflash.image.commit.rewrite import (
    EditState,
    NeitherOldNorNewError,
    find_state,
    restore,
)
from balenaflash.image.commit.store import ReadBackDiffersError, Store, StoreFailedError
from balenaflash.image.commit.undo import (
    ForeignRecordError,
    RecordFile,
    UndoRecord,
    cannot_undo,
    open_record,
    remove_record,
)


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
