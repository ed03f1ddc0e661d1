"""The undo record: what a commit is about to replace, kept elsewhere until it is done.

The format, little-endian: a header (magic, version, number of replacements, size of the image);
for each replacement its offset and length, the old bytes, and 8 bytes of XXH3 of each new sector;
at the end 16 bytes of XXH3 over everything before. A record without a valid end was never
finished, and since the image is written only after its record, that image was not yet touched.
"""

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from balenaflash.errors import EditError
from balenaflash.extent import SECTOR_SIZE

_MAGIC = b"balenaflash-undo"
_VERSION = 1
_HEADER = struct.Struct("<16sIIQ")
_PLACE = struct.Struct("<QQ")
_DIGEST_SIZE = 8
_END_SIZE = 16
_NAME_MAX = 255  # bytes, linux/limits.h


def sector_slices(offset: int, length: int) -> Iterator[slice]:
    """Where the sectors of the image cut ``[offset, offset + length)``, relative to ``offset``.

    The first and the last piece are shorter than a sector where the range is not aligned. A
    write that is cut off leaves each of these pieces wholly old or wholly new.
    """
    start = 0
    while start < length:
        end = min(length, start + SECTOR_SIZE - (offset + start) % SECTOR_SIZE)
        yield slice(start, end)
        start = end


def sector_digest(content: bytes | memoryview) -> bytes:
    """Enough to know a sector, or a piece of one, again; it is no proof against forgery."""
    return xxhash.xxh3_64_digest(content)


@dataclass(frozen=True, slots=True)
class Replacement:
    """A range of the image that is being replaced."""

    offset: int
    """In bytes from the start of the image."""

    old: bytes
    """What was there."""

    new_digests: tuple[bytes, ...]
    """One of each piece of `sector_slices`, enough to know it again."""

    @classmethod
    def between(cls, offset: int, old: bytes, new: memoryview) -> "Replacement":
        """``old`` at ``offset`` gives way to ``new``, of the same length."""
        slices = sector_slices(offset, len(old))
        return cls(offset, old, tuple(sector_digest(new[piece]) for piece in slices))

    def pieces(self) -> Iterator[tuple[slice, bytes]]:
        """The sectors within, relative to ``offset``, and the digest of what replaces each."""
        return zip(sector_slices(self.offset, len(self.old)), self.new_digests, strict=True)


@dataclass(frozen=True, slots=True)
class UndoRecord:
    """A record that was finished, so that the image may have been written."""

    image_size: int
    replacements: tuple[Replacement, ...]


@dataclass(frozen=True, slots=True)
class RecordFile:
    """Where the undo record of one image or card is kept, and what to tell of it."""

    path: Path
    subject: str
    """What it is the record of, as messages call that."""

    owner: int
    """User that the image belongs to: in a directory that others may write to, a record of
    anybody else than them, root or ourselves is not believed."""

    group: int
    undone_by: str = "the next command that opens it"
    """Who deals with a record that was left."""

    if_stuck: str = "Replace the image by a good copy"
    """What the user can do where it cannot be dealt with."""


def record_beside(image: Path, descriptor: int) -> RecordFile:
    """Where the record of the image file lies that is open as ``descriptor``."""
    status = os.fstat(descriptor)
    return RecordFile(undo_path(image), str(image), status.st_uid, status.st_gid)


def undo_path(image: Path) -> Path:
    """Where the record of ``image`` lies: beside the file itself, not beside a link to it.

    Its name is made of that of the image, or of a digest where that would be too long.
    """
    real = image.resolve()
    name = f".{real.name}.balenaflash-undo"
    if len(os.fsencode(name)) > _NAME_MAX:
        digest = hashlib.sha256(os.fsencode(real.name)).hexdigest()
        name = f".{digest}.balenaflash-undo"
    return real.with_name(name)


def write_record(
    file: RecordFile, image_size: int, count: int, replacements: Iterable[Replacement]
) -> None:
    """Keep the record of ``count`` replacements, safe from a loss of power.

    It holds parts of files that may be secret, so only the owner of the image may read it.

    Raises:
        EditError: it cannot be made; nothing is left of it.
    """
    blocks = _encode(image_size, count, replacements)
    try:
        record = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(record, "wb") as stream:
                if os.geteuid() == 0:
                    os.fchown(record, file.owner, file.group)
                stream.writelines(blocks)
                stream.flush()
                os.fsync(record)
            _sync_directory(file.path.parent)
        except BaseException:
            file.path.unlink()
            raise
    except OSError as error:
        raise _cannot_keep(file, error) from error


def remove_record(file: RecordFile) -> None:
    """Remove the record, for good even if the power is lost; none is no error."""
    with suppress(FileNotFoundError):
        file.path.unlink()
    _sync_directory(file.path.parent)


def read_record(file: RecordFile) -> UndoRecord | None:
    """The record; ``None`` if it was never finished.

    Raises:
        FileNotFoundError: there is none.
        EditError: it cannot be read, or somebody else made it.
    """
    try:
        record = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(record)
            is_ours = status.st_uid in {file.owner, os.geteuid(), 0}
            if not (stat.S_ISREG(status.st_mode) and is_ours):
                raise cannot_undo(file, f"{file.path} is not the image owner's")
            with os.fdopen(record, "rb", closefd=False) as stream:
                content = stream.read()
        finally:
            os.close(record)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise cannot_undo(file, f"{file.path}: {error.strerror}") from error
    return _decode(file, content)


def _encode(image_size: int, count: int, replacements: Iterable[Replacement]) -> Iterator[bytes]:
    checksum = xxhash.xxh3_128()
    for block in _body(image_size, count, replacements):
        checksum.update(block)
        yield block
    yield checksum.digest()


def _body(image_size: int, count: int, replacements: Iterable[Replacement]) -> Iterator[bytes]:
    yield _HEADER.pack(_MAGIC, _VERSION, count, image_size)
    for replacement in replacements:
        yield _PLACE.pack(replacement.offset, len(replacement.old))
        yield replacement.old
        yield b"".join(replacement.new_digests)


def _decode(file: RecordFile, content: bytes) -> UndoRecord | None:
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        return None
    _magic, version, count, image_size = _HEADER.unpack_from(content)
    if version != _VERSION:
        raise cannot_undo(file, f"{file.path} is of another version of balenaflash")
    view = memoryview(content)
    body, end = view[:-_END_SIZE], view[-_END_SIZE:]
    if xxhash.xxh3_128_digest(body) != end:
        return None
    replacements = []
    position = _HEADER.size
    for _ in range(count):
        replacement, position = _decode_replacement(body, position)
        replacements.append(replacement)
    return UndoRecord(image_size, tuple(replacements))


def _decode_replacement(body: memoryview, position: int) -> tuple[Replacement, int]:
    offset, length = _PLACE.unpack_from(body, position)
    start = position + _PLACE.size
    old = bytes(body[start : start + length])
    position = start + len(old)
    digests = []
    for _ in sector_slices(offset, len(old)):
        digests.append(bytes(body[position : position + _DIGEST_SIZE]))
        position += _DIGEST_SIZE
    return Replacement(offset, old, tuple(digests)), position


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems know no fsync of a directory; there is nothing else to do.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def cannot_undo(file: RecordFile, reason: str) -> EditError:
    """The error for an interrupted edit that cannot be dealt with."""
    return EditError(
        f"{file.subject}: an edit of it was cut off and cannot be undone: {reason}",
        code="undo-impossible",
        hint=f"{file.if_stuck}, and remove {file.path}.",
    )


def _cannot_keep(file: RecordFile, error: OSError) -> EditError:
    return EditError(
        f"{file.subject}: cannot be edited safely: its undo record cannot be made: "
        f"{error.strerror}",
        code="undo-record-failed",
        hint=f"An edit keeps what it replaces in {file.path.parent} until it is done.",
    )
