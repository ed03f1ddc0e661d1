"""Open an image, wherever it is and whatever it is stored in.

A file is opened so that nobody edits it meanwhile, and never half-edited.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balenaflash.errors import EditError, ImageError
from balenaflash.image.checked import CheckedSource, wrong_sum
from balenaflash.image.commit.commit import EditableImage, ReadableImage
from balenaflash.image.commit.recovery import Recovery, settle
from balenaflash.image.commit.store import FileStore
from balenaflash.image.commit.undo import record_beside, undo_path
from balenaflash.image.container.decoder import Compressed
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.location import ImageLocation, StandardInput, Url
from balenaflash.image.container.origin import FileOrigin, Origin
from balenaflash.image.container.plain import OriginSource, PlainDecoder
from balenaflash.image.container.recognise import recognise
from balenaflash.image.source import FileSource, Source, open_source
from balenaflash.image.stream import StreamSource

_STANDARD_INPUT = 0

_JUMP = 32 << 20
"""Bytes forward from which on a decoder that can start elsewhere does: more than a block has."""


@contextmanager
def open_for_editing(path: Path) -> Iterator[EditableImage]:
    """The image file at ``path``, locked and open for a commit until the block ends.

    An earlier edit that was cut off is dealt with first.

    Raises:
        ImageError: as `open_source`.
        EditError: it is a block device, compressed, may not be written, or is in use by another
            process; or an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_source(path) as source:
        if source.container is not Container.RAW:
            raise EditError(f"{path}: is a block device, not an image file", code="image-is-device")
        _refuse_compressed(path, source)
    descriptor = _open_to_write(path)
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        recovery = settle(record_beside(path, descriptor), FileStore(descriptor))
        size = os.fstat(descriptor).st_size
        source = FileSource(path, descriptor, Container.RAW, size)
        yield EditableImage(source, Container.RAW, None, recovery, path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_for_reading(
    location: ImageLocation, *, member: str | None = None, sha256: str | None = None
) -> Iterator[ReadableImage]:
    """The image at ``location``, which no edit changes until the block ends.

    ``member`` names it in a container that has several. ``sha256``, in lower case, is the sum of
    what lies at ``location`` or of the image itself.

    An earlier edit of a file that was cut off is dealt with first, which needs the permission to
    write. Any number may read at a time. A block device is not locked.

    Raises:
        ImageError: it cannot be read, is no usable container, or has another sum.
        EditError: another process is editing it; or as `recover`.
        WriteError: as `recover`.
    """
    match location:
        case StandardInput():
            from balenaflash.image.container.pipe import PipeOrigin  # noqa: PLC0415 - as below

            with PipeOrigin(_STANDARD_INPUT) as pipe:
                yield from _open_origin(pipe, member, sha256)
        case Url():
            # TLS takes as long to import as all the rest.
            from balenaflash.image.container.http import HttpOrigin  # noqa: PLC0415

            with HttpOrigin(location) as http:
                yield from _open_origin(http, member, sha256)
        case Path():
            with _open_file(location) as (source, recovery):
                yield from _open_stored(source, recovery, member, sha256)


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


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[FileSource, Recovery | None]]:
    """The file or block device at ``path``, not being edited."""
    with open_source(path) as source:
        if source.container is not Container.RAW:
            yield source, None
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(path, descriptor, fcntl.LOCK_SH)
            recovery = None
            if os.path.lexists(undo_path(path)):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                recovery = recover(path)
                _lock(path, descriptor, fcntl.LOCK_SH)
            yield source, recovery
        finally:
            os.close(descriptor)


def _open_stored(
    stored: FileSource, recovery: Recovery | None, member: str | None, sha256: str | None
) -> Iterator[ReadableImage]:
    """The image in the file or block device ``stored``."""
    found = _sum_of(stored) if sha256 is not None else None
    origin = FileOrigin(stored.name, stored.descriptor, stored.size, stored.rereads)
    compressed = _recognise(origin, member)
    if compressed is None:
        if sha256 is not None and found is not None and found != sha256:
            raise wrong_sum(stored.name, found, sha256)
        yield ReadableImage(stored, stored.container, None, recovery, rereads=stored.rereads)
        return
    stream = _stream(stored.name, compressed, is_repeatable=True, is_forkable=True)
    try:
        # The sum may be that of the file as it was downloaded, or of the image in it.
        is_to_check = sha256 is not None and found != sha256
        source = CheckedSource(stream, sha256) if sha256 and is_to_check else stream
        yield ReadableImage(
            source, compressed.container, compressed.member, recovery, rereads=stored.rereads
        )
    finally:
        stream.close()


def _open_origin(origin: Origin, member: str | None, sha256: str | None) -> Iterator[ReadableImage]:
    """The image that comes from elsewhere."""
    compressed = _recognise(origin, member)
    container = Container.RAW if compressed is None else compressed.container
    source: Source
    if compressed is None and origin.seekable:
        source = OriginSource(origin)
        yield ReadableImage(_checked(source, sha256), container, None, None)
        return
    if compressed is None:
        stream = StreamSource(
            origin.name,
            lambda at: PlainDecoder(origin, at),
            size=origin.size,
            jump=None,
            is_repeatable=False,
            is_forkable=False,
        )
    else:
        stream = _stream(origin.name, compressed, is_repeatable=origin.seekable, is_forkable=False)
    try:
        member_name = None if compressed is None else compressed.member
        yield ReadableImage(_checked(stream, sha256), container, member_name, None)
    finally:
        stream.close()


def _recognise(origin: Origin, member: str | None) -> Compressed | None:
    compressed = recognise(origin, member)
    if member is not None and (compressed is None or compressed.member is None):
        raise ImageError(
            f"{origin.name}: has no members: it is no zip file",
            code="zip-member-missing",
            hint="Leave --member out.",
        )
    return compressed


def _checked(source: Source, sha256: str | None) -> Source:
    return source if sha256 is None else CheckedSource(source, sha256)


def _stream(
    name: str, compressed: Compressed, *, is_repeatable: bool, is_forkable: bool
) -> StreamSource:
    return StreamSource(
        name,
        compressed.open_decoder,
        size=compressed.size,
        jump=_JUMP if compressed.seekable else None,
        # What is only stored in a zip; of xz whole blocks have to be decoded.
        seekable=compressed.seekable and compressed.container is Container.ZIP,
        is_repeatable=is_repeatable,
        is_forkable=is_forkable,
    )


def _sum_of(source: FileSource) -> str:
    """SHA-256 of what is stored, in hexadecimal."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    for offset in range(0, source.size, len(buffer)):
        piece = buffer[: source.size - offset]
        source.readinto(offset, piece)
        digest.update(piece)
    return digest.hexdigest()


def _refuse_compressed(path: Path, source: FileSource) -> None:
    compressed = recognise(FileOrigin(source.name, source.descriptor, source.size))
    if compressed is not None:
        raise EditError(
            f"{path}: is compressed ({compressed.container}), and only a raw image is edited "
            "in place",
            code="image-compressed",
            hint="Write the edited image to another file: the same command with --output OUT.img",
        )


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
