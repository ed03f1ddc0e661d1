"""Open an image, wherever it is and whatever it is stored in.

A file is locked, so that no edit changes it meanwhile, and an edit that was cut off is dealt
with first.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from balenaflash.errors import EditError, ImageError
from balenaflash.source.base import FileSource, open_source
from balenaflash.source.commit import EditableImage, ReadableImage, Recovery, recover_image
from balenaflash.source.container.decoder import (
    Compressed,
    Container,
    Decoder,
    Origin,
    PlainDecoder,
)
from balenaflash.source.container.recognise import recognise
from balenaflash.source.layers import FileState, SealedSource, SteadySource
from balenaflash.source.location import ImageLocation, StandardInput, Url
from balenaflash.source.map_beside import renew_maps
from balenaflash.source.pipe import PipeOrigin
from balenaflash.source.stream import StreamSource
from balenaflash.source.sums import Check, CheckedDecoder, HashedOrigin, Sha256Check
from balenaflash.source.undo_record import (
    FileStore,
    ForeignRecordError,
    has_record,
    record_beside,
    undo_path,
)

_STANDARD_INPUT = 0

_JUMP = 32 << 20
"""Bytes to skip from which a decoder starts anew where it can; more than a block holds."""


@contextmanager
def open_for_editing(path: Path) -> Iterator[EditableImage]:
    """The image file at ``path``, locked and open for a commit until the block ends.

    An earlier edit that was cut off is dealt with first.

    Raises:
        ImageError: as `open_source`.
        EditError: it is a block device or compressed, cannot be written, or is in use by another
            process; or an earlier edit was cut off and cannot be undone.
        WriteError: undoing an earlier edit failed; its record stays.
    """
    with open_source(path) as source:
        if source.container is not Container.RAW:
            raise EditError(f"{path}: is a block device, not an image file", code="image-is-device")
        compressed = recognise(source)
        if compressed is not None:
            raise EditError(
                f"{path}: is compressed ({compressed.container}), and only a raw image is edited "
                "in place",
                code="image-compressed",
                hint="Write the edited image to another file: the same command with "
                "--output OUT.img",
            )
        descriptor = _open_to_write(source)
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        source = FileSource(path, descriptor, Container.RAW, size)
        store = FileStore(descriptor)
        recovery = recover_image(
            record_beside(path, descriptor),
            store,
            lambda record: renew_maps(path, source, record.old_patches()),
        )
        state = FileState.read(descriptor)
        unchanged = partial(state.require_same, descriptor, source.name)
        yield EditableImage(
            source,
            Container.RAW,
            warnings=() if recovery is None else (recovery,),
            require_unchanged=unchanged,
            store=store,
            find_record=partial(record_beside, path, descriptor),
        )
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

    ``member`` is its name in a container that has several. ``sha256``, in lower case, is the sum
    of the file at ``location`` or of the image itself, and ``checks`` are further such checks. A
    file is hashed here, and every byte that is read later is compared with those that were
    hashed. All other sums are compared when the end is read.

    An earlier edit of a file that was cut off is dealt with first, which needs the permission to
    write. Any number of processes may read at a time. A block device is not locked.

    Raises:
        ImageError: it cannot be read, is in a container that cannot be used, or has another sum.
        EditError: another process is editing it; or as `recover`.
        WriteError: as `recover`.
    """
    if sha256 is not None:
        checks = (Sha256Check(bytes.fromhex(sha256)), *checks)
    match location:
        case StandardInput():
            pipe = PipeOrigin(_STANDARD_INPUT)
            state = FileState.read(_STANDARD_INPUT)
            at_end = partial(state.require_same, _STANDARD_INPUT, pipe.name)
            yield from _open_origin(pipe, member, checks, at_end)
        case Url():
            # TLS takes as long to import as everything else.
            from balenaflash.source.http import HttpOrigin  # noqa: PLC0415

            with HttpOrigin(location) as http:
                yield from _open_origin(http, member, checks)
        case Path():
            with _open_file(location) as (source, recovery):
                yield from _open_stored(source, recovery, member, checks)


def recover(path: Path) -> Recovery | None:
    """Deal with an edit of the image file at ``path`` that was cut off, if there was one.

    Raises:
        EditError: it cannot be undone: no permission, the image is in use, or it has been
            changed or replaced since. Nothing was touched.
        WriteError: writing the old bytes failed; the record stays.
    """
    if not os.path.lexists(undo_path(path)):
        return None
    with open_for_editing(path) as image:
        return next((each for each in image.warnings if isinstance(each, Recovery)), None)


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[FileSource, Recovery | None]]:
    """The file or block device at ``path``, which no edit changes until the block ends."""
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
    warnings = () if recovery is None else (recovery,)
    image = partial(ReadableImage, warnings=warnings, rereads=stored.rereads)
    # A block device may be mounted, and is refused only if it is read to its end.
    if stored.container is Container.RAW:
        image = partial(image, require_unchanged=at_end)
    sealed = SealedSource(stored) if checks else None
    compressed = _recognise(sealed or stored, member)
    if compressed is None:
        if sealed is not None:
            for check in checks:
                check.require(stored.name, sealed.sha256, sealed.sha256)
        yield image(sealed or SteadySource(stored, state), stored.container)
        return
    open_decoder: Callable[[int], Decoder] = compressed.open_decoder
    if sealed is not None:
        sha256 = sealed.sha256
        checks = [check for check in checks if not check.is_met_by_stored(sha256)]
        open_decoder = _checking(stored.name, open_decoder, checks, lambda: sha256)
    is_jumping = compressed.seekable and not checks
    stream = StreamSource(
        stored.name,
        open_decoder,
        size=compressed.size,
        jump=_JUMP if is_jumping else None,
        # A member that is only stored in a zip is read anywhere; of xz whole blocks are decoded.
        seekable=is_jumping and compressed.container is Container.ZIP,
        is_repeatable=True,
        is_forkable=True,
        at_end=at_end,
    )
    with closing(stream):
        yield image(stream, compressed.container, compressed.member)


def _open_origin(
    origin: Origin,
    member: str | None,
    checks: Sequence[Check],
    at_end: Callable[[], None] = lambda: None,
) -> Iterator[ReadableImage]:
    """The image from standard input or a web server, which sends the same version each time."""
    with ExitStack() as stack:
        hashed = stack.enter_context(closing(HashedOrigin(origin))) if checks else None
        read = hashed or origin
        warnings: list[str] = []
        compressed = _recognise(read, member, warnings.append)
        open_decoder: Callable[[int], Decoder] = partial(PlainDecoder, read)
        size, is_jumping, container, name = read.size, read.seekable, Container.RAW, None
        if compressed is not None:
            open_decoder, size = compressed.open_decoder, compressed.size
            is_jumping = compressed.seekable
            container, name = compressed.container, compressed.member
        if hashed is not None:
            open_decoder = _checking(origin.name, open_decoder, checks, hashed.digest)
        stream = StreamSource(
            origin.name,
            open_decoder,
            size=size,
            jump=_JUMP if is_jumping else None,
            is_repeatable=read.seekable,
            is_forkable=False,
            at_end=at_end,
        )
        stack.enter_context(closing(stream))
        yield ReadableImage(stream, container, name, late_warnings=warnings)


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
            f"{origin.name}: has no members: it is not a zip file",
            code="zip-member-missing",
            hint="Leave --member out.",
        )
    return compressed


def _place_of(source: FileSource) -> str:
    """A path to the open file, even if its name now leads to another one."""
    return f"/proc/self/fd/{source.descriptor}"


def _open_to_write(source: FileSource) -> int:
    try:
        return os.open(_place_of(source), os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise EditError(
            f"{source.name}: cannot be opened for writing: {error.strerror}",
            code="image-read-only",
            hint="Make it writable, or write the edited image to another file: --output OUT.img",
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
        # On a filesystem without locks an image can still be read.
        if mode == fcntl.LOCK_SH and error.errno in {errno.ENOLCK, errno.EOPNOTSUPP}:
            return
        raise EditError(
            f"{path}: cannot be locked: {error.strerror}",
            code="image-not-lockable",
            hint="Edit a copy on a local filesystem.",
        ) from error
