"""Open an image, wherever it is and whatever it is stored in.

A file is opened so that nobody edits it meanwhile, and never half-edited.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from balenaflash.errors import EditError, ImageError
from balenaflash.source.base import FileSource, Source, open_source
from balenaflash.source.commit import EditableImage, ReadableImage, Recovery, settle
from balenaflash.source.container.decoder import (
    Compressed,
    Container,
    Decoder,
    FileOrigin,
    Origin,
    PlainDecoder,
)
from balenaflash.source.container.recognise import recognise
from balenaflash.source.layers import FileState, SealedSource, SteadySource
from balenaflash.source.location import ImageLocation, StandardInput, Url
from balenaflash.source.map_beside import renew_maps
from balenaflash.source.stream import StreamSource
from balenaflash.source.sums import Check, CheckedDecoder, HashedOrigin, Sha256Check
from balenaflash.source.undo import (
    FileStore,
    ForeignRecordError,
    has_record,
    record_beside,
    undo_path,
)

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
        descriptor = _open_to_write(source)
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        source = FileSource(path, descriptor, Container.RAW, size)
        recovery = settle(
            record_beside(path, descriptor),
            FileStore(descriptor),
            lambda record: renew_maps(path, source, record.old_patches()),
        )
        state = FileState.read(descriptor)
        unchanged = partial(state.require_same, descriptor, source.name)
        yield EditableImage(source, Container.RAW, None, recovery, unchanged, path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_for_reading(
    location: ImageLocation,
    *,
    member: str | None = None,
    sha256: str | None = None,
    checks: Sequence[Check] = (),
) -> Iterator[ReadableImage]:
    """The image at ``location``, which no edit changes until the block ends.

    ``member`` names it in a container that has several. ``sha256``, in lower case, is the sum of
    what lies at ``location`` or of the image itself. That of a file is computed here, and every
    byte that is read later is one of those. All others are compared when the end is read.
    ``checks`` are made in the same way.

    An earlier edit of a file that was cut off is dealt with first, which needs the permission to
    write. Any number may read at a time. A block device is not locked.

    Raises:
        ImageError: it cannot be read, is no usable container, or has another sum.
        EditError: another process is editing it; or as `recover`.
        WriteError: as `recover`.
    """
    if sha256 is not None:
        checks = (Sha256Check(bytes.fromhex(sha256)), *checks)
    match location:
        case StandardInput():
            from balenaflash.source.pipe import PipeOrigin  # noqa: PLC0415 - as below

            pipe = PipeOrigin(_STANDARD_INPUT)
            state = FileState.read(_STANDARD_INPUT)
            at_end = partial(state.require_same, _STANDARD_INPUT, pipe.name)
            yield from _open_origin(pipe, member, checks, at_end)
        case Url():
            # TLS takes as long to import as all the rest.
            from balenaflash.source.http import HttpOrigin  # noqa: PLC0415

            with HttpOrigin(location) as http:
                yield from _open_origin(http, member, checks, _nothing)
        case Path():
            with _open_file(location) as (source, recovery):
                yield from _open_stored(source, recovery, member, checks)


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
        descriptor = os.open(_place_of(source), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(path, descriptor, fcntl.LOCK_SH)
            recovery = None
            try:
                if has_record(record_beside(path, descriptor)):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                    recovery = recover(path)
                    _lock(path, descriptor, fcntl.LOCK_SH)
            except ForeignRecordError:
                recovery = Recovery.FOREIGN
            yield source, recovery
        finally:
            os.close(descriptor)


def _open_stored(
    stored: FileSource, recovery: Recovery | None, member: str | None, checks: Sequence[Check]
) -> Iterator[ReadableImage]:
    """The image in the file or block device ``stored``."""
    state = FileState.read(stored.descriptor)
    at_end = partial(state.require_same, stored.descriptor, stored.name)
    # What is only looked at may be a card, or a disk, that is mounted.
    unchanged = at_end if stored.container is Container.RAW else _nothing
    sealed = SealedSource(stored) if checks else None
    origin: Origin = sealed or FileOrigin(
        stored.name, stored.descriptor, stored.size, stored.rereads
    )
    compressed = _recognise(origin, member)
    if compressed is None:
        if sealed is not None:
            for check in checks:
                check.require(stored.name, sealed.sha256, sealed.sha256)
        source = sealed or SteadySource(stored, state)
        yield ReadableImage(
            source, stored.container, None, recovery, unchanged, rereads=stored.rereads
        )
        return
    open_decoder: Callable[[int], Decoder] = compressed.open_decoder
    if sealed is not None:
        sha256 = sealed.sha256
        checks = [check for check in checks if not check.is_met_by_stored(sha256)]
        open_decoder = _checking(stored.name, open_decoder, checks, lambda: sha256)
    stream = StreamSource(
        stored.name,
        open_decoder,
        size=compressed.size,
        jump=_JUMP if compressed.seekable and not checks else None,
        seekable=_is_seekable(compressed) and not checks,
        is_repeatable=True,
        is_forkable=True,
        at_end=at_end,
    )
    with closing(stream):
        yield ReadableImage(
            stream,
            compressed.container,
            compressed.member,
            recovery,
            unchanged,
            rereads=stored.rereads,
        )


def _open_origin(
    origin: Origin, member: str | None, checks: Sequence[Check], at_end: Callable[[], None]
) -> Iterator[ReadableImage]:
    """The image that comes from elsewhere."""
    warnings: list[str] = []
    if not checks:
        yield from _open_unchecked(origin, member, at_end, warnings)
        return
    with closing(HashedOrigin(origin)) as hashed:
        compressed = _recognise(hashed, member, warnings.append)
        opener = _plain(hashed) if compressed is None else compressed.open_decoder
        stream = StreamSource(
            origin.name,
            _checking(origin.name, opener, checks, hashed.digest),
            size=origin.size if compressed is None else compressed.size,
            jump=None,
            is_repeatable=False,
            is_forkable=False,
            at_end=at_end,
        )
        with closing(stream):
            yield _readable(stream, compressed, warnings)


def _open_unchecked(
    origin: Origin, member: str | None, at_end: Callable[[], None], warnings: list[str]
) -> Iterator[ReadableImage]:
    compressed = _recognise(origin, member, warnings.append)
    is_jumping = origin.seekable if compressed is None else compressed.seekable
    stream = StreamSource(
        origin.name,
        _plain(origin) if compressed is None else compressed.open_decoder,
        size=origin.size if compressed is None else compressed.size,
        jump=_JUMP if is_jumping else None,
        is_repeatable=origin.seekable,
        is_forkable=False,
        at_end=at_end,
    )
    with closing(stream):
        yield _readable(stream, compressed, warnings)


def _readable(
    source: Source, compressed: Compressed | None, late_warnings: Sequence[str]
) -> ReadableImage:
    container, member = Container.RAW, None
    if compressed is not None:
        container, member = compressed.container, compressed.member
    return ReadableImage(source, container, member, None, _nothing, late_warnings=late_warnings)


def _plain(origin: Origin) -> Callable[[int], Decoder]:
    return lambda at: PlainDecoder(origin, at)


def _checking(
    name: str,
    open_decoder: Callable[[int], Decoder],
    checks: Sequence[Check],
    stored: Callable[[], bytes],
) -> Callable[[int], Decoder]:
    """``open_decoder`` for an image to be checked at its end, which is then read from its start."""
    if not checks:
        return open_decoder
    return lambda at: CheckedDecoder(name, open_decoder(at), checks, stored)


def _recognise(
    origin: Origin, member: str | None, warn: Callable[[str], None] = lambda _: None
) -> Compressed | None:
    compressed = recognise(origin, member, warn)
    if member is not None and (compressed is None or compressed.member is None):
        raise ImageError(
            f"{origin.name}: has no members: it is no zip file",
            code="zip-member-missing",
            hint="Leave --member out.",
        )
    return compressed


def _nothing() -> None:
    """A web server is asked for the same version of an image each time."""


def _is_seekable(compressed: Compressed) -> bool:
    """Whether any place is read without others: of what is only stored in a zip.

    Of xz whole blocks have to be decoded.
    """
    return compressed.seekable and compressed.container is Container.ZIP


def _refuse_compressed(path: Path, source: FileSource) -> None:
    compressed = recognise(FileOrigin(source.name, source.descriptor, source.size))
    if compressed is not None:
        raise EditError(
            f"{path}: is compressed ({compressed.container}), and only a raw image is edited "
            "in place",
            code="image-compressed",
            hint="Write the edited image to another file: the same command with --output OUT.img",
        )


def _place_of(source: FileSource) -> str:
    """A path to the file that is open, whatever lies under its name by now."""
    return f"/proc/self/fd/{source.descriptor}"


def _open_to_write(source: FileSource) -> int:
    try:
        return os.open(_place_of(source), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(
            f"{source.name}: cannot be opened for writing: {error.strerror}",
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
