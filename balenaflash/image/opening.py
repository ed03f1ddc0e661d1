"""Open an image so that nobody edits it meanwhile, and never half-edited."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balenaflash.errors import EditError
from balenaflash.image.commit.commit import EditableImage, ReadableImage
from balenaflash.image.commit.recovery import Recovery, settle
from balenaflash.image.commit.store import FileStore
from balenaflash.image.commit.undo import record_beside, undo_path
from balenaflash.image.source import Container, FileSource, open_source


@contextmanager
def open_for_editing(path: Path) -> Iterator[EditableImage]:
    """The image file at ``path``, locked and open for a commit until the block ends.

    An earlier edit that was cut off is dealt with first.

    Raises:
        ImageError: as `open_source`.
        EditError: it is a block device, may not be written, or is in use by another process;
            or an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_source(path) as source:
        if source.container is not Container.RAW:
            raise EditError(f"{path}: is a block device, not an image file", code="image-is-device")
    descriptor = _open_to_write(path)
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        recovery = settle(record_beside(path, descriptor), FileStore(descriptor))
        size = os.fstat(descriptor).st_size
        source = FileSource(path, descriptor, Container.RAW, size)
        yield EditableImage(source, recovery, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_for_reading(path: Path) -> Iterator[ReadableImage]:
    """The image at ``path``, which no edit changes until the block ends.

    An earlier edit that was cut off is dealt with first, which needs the permission to write.
    Any number may read at a time. A block device is not locked.

    Raises:
        ImageError: as `open_source`.
        EditError: another process is editing it; or as `recover`.
        WriteError: as `recover`.
    """
    with open_source(path) as source:
        if source.container is not Container.RAW:
            yield ReadableImage(source, None)
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(path, descriptor, fcntl.LOCK_SH)
            recovery = None
            if os.path.lexists(undo_path(path)):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                recovery = recover(path)
                _lock(path, descriptor, fcntl.LOCK_SH)
            yield ReadableImage(source, recovery)
        finally:
            os.close(descriptor)


def recover(path: Path) -> Recovery | None:
    """Deal with an edit of the image file at ``path`` that was cut off, if there was one.

    Raises:
        EditError: it cannot be undone: no permission, the image is in use, or it has been
            changed or replaced since. Nothing was touched.
        WriteError: putting the old bytes back failed; the record stays.
    """
    if not os.path.lexists(undo_path(path)):
        return None
    with open_for_editing(path) as image:
        return image.recovery


def _open_to_write(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(
            f"{path}: cannot be opened for writing: {error.strerror}",
            code="image-read-only",
            hint="Make it writable, or edit a copy.",
        ) from error


def _lock(path: Path, descriptor: int, mode: int) -> None:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EditError(
            f"{path}: is in use by another balenaflash",
            code="image-locked",
            hint="Try again when that has finished.",
        ) from error
    except OSError as error:
        # A filesystem without locks keeps nobody from reading.
        if mode == fcntl.LOCK_SH and error.errno in {errno.ENOLCK, errno.EOPNOTSUPP}:
            return
        raise EditError(
            f"{path}: cannot be locked: {error.strerror}",
            code="image-not-lockable",
            hint="Edit a copy on a local filesystem.",
        ) from error
