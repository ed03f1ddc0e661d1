"""The undo record of an edit under way, kept elsewhere, and its mark in the volume itself.

It lies in the state byte of a FAT boot sector (linux/msdos_fs.h, ``state``; offset 37, in FAT32
65). Bit 0 there means "not unmounted": Linux warns of it when it mounts the volume, fsck.vfat
finds it. The upper four bits are zero everywhere else; ours tell an edit that was cut off apart
from a card that was pulled. Linux and fsck.vfat leave them as they are.

The format, little-endian: a header (magic, version, number of replacements, size of the image,
and the `EditMark`: its offset, the byte before and after); for each replacement, in ascending
order, its offset and length, the old bytes, and 8 bytes of XXH3 of each new sector; at the end 16
bytes of XXH3 over everything before. A record without a valid end was never finished, and since
the image is written only after its record, that image was not yet touched.

A record comes with an image, from wherever that comes: nothing in it is believed unchecked, and
no more than a piece of it is in memory.
"""

import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash

from balenaflash.durable import open_folder
from balenaflash.errors import CodedText, EditError, ImageError
from balenaflash.source.layers import Patch
from balenaflash.units import MIB, SECTOR_SIZE, align_down, align_up


class StoreFailedError(Exception):
    """Reading or writing failed; the state of what was being written is unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """Why, as what follows the name of the store and a colon."""


class ReadBackDiffersError(Exception):
    """The medium does not hold what it accepted."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset
        """Start of the range that differs, in bytes from the start of the image."""


class Store(Protocol):
    """Bytes that are read, rewritten in place and read back; every range lies inside."""

    @property
    def size(self) -> int:
        """Bytes from start to end."""

    @property
    def alignment(self) -> int:
        """Offset and length of what is written are multiples of this, in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, or fewer where a file ends.

        Raises:
            StoreFailedError: they cannot be read.
        """

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on; after a failure each sector is old or new.

        Raises:
            StoreFailedError: not all of it was written.
        """

    def flush(self) -> None:
        """Return when all that was written would survive a loss of power.

        Raises:
            StoreFailedError: it may not.
        """

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, from the medium and not from a cache; the range has been flushed."""


class FileStore:
    """An open file; whoever opened it closes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return os.fstat(self._descriptor).st_size

    @property
    def alignment(self) -> int:
        """1: a file is written at any offset."""
        return 1

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``, or fewer where the file ends."""
        blocks = []
        with _failures("read"):
            while length > 0:
                block = os.pread(self._descriptor, length, offset)
                if not block:
                    break
                blocks.append(block)
                offset += len(block)
                length -= len(block)
        return b"".join(blocks)

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on."""
        done = 0
        with _failures("written"):
            while done < len(content):
                done += os.pwrite(self._descriptor, content[done:], offset + done)

    def flush(self) -> None:
        """Return when all that was written would survive a loss of power."""
        with _failures("written"):
            os.fsync(self._descriptor)

    def read_back(self, offset: int, length: int) -> bytes:
        """As `read`, after dropping from the cache what was flushed and is not mapped.

        The kernel leaves pages alone that lie only partly in the range (posix_fadvise(2)).
        """
        start = align_down(offset, mmap.PAGESIZE)
        end = align_up(offset + length, mmap.PAGESIZE)
        with _failures("read"):
            os.posix_fadvise(self._descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
        return self.read(offset, length)


@contextmanager
def _failures(participle: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailedError(f"cannot be {participle}: {error.strerror}") from error


_NOT_UNMOUNTED = 0x01
_EDIT = 0xB0
_OTHERS = 0x0E  # bits that stay as they are: 0x02 asks for a surface scan


def is_edit_marked(state: int) -> bool:
    """Whether the state byte tells of an edit under way.

    A program that clears "not unmounted", such as fsck.vfat, has accepted the volume as it is.
    """
    return state & ~_OTHERS == _EDIT | _NOT_UNMOUNTED


@dataclass(frozen=True, slots=True)
class EditMark:
    """Where an edit is marked, and what is there otherwise."""

    offset: int
    """Offset of the byte, in bytes from the start of the image."""

    before: int
    """Value of the byte before the edit."""

    after: int
    """Value of the byte after the edit."""

    @property
    def marked(self) -> int:
        """Value of the byte during the edit."""
        return self.before & _OTHERS | _EDIT | _NOT_UNMOUNTED


class MarkedStore:
    """A store seen as if the mark were not there: its byte reads as before the edit, and stays."""

    def __init__(self, store: Store, mark: EditMark | None) -> None:
        self._store = store
        self._mark = mark

    @property
    def size(self) -> int:
        """Bytes from start to end."""
        return self._store.size

    @property
    def is_marked(self) -> bool:
        """Whether the edit has begun and has not ended; true where it is not marked at all."""
        return self._mark is None or self._state() == self._mark.marked

    @property
    def alignment(self) -> int:
        """As `Store.alignment`."""
        return self._store.alignment

    def begin(self) -> None:
        """Set the mark, on the medium too, before the first byte of the edit is written.

        Raises:
            StoreFailedError: it may be there or not.
            ReadBackDiffersError: it is not what was written.
        """
        if self._mark is not None:
            self._put(self._mark.offset, self._mark.marked)

    def end(self, *, undone: bool) -> None:
        """Remove the mark, after the last byte was flushed; errors as `begin`."""
        if self._mark is None:
            return
        value = self._mark.before if undone else self._mark.after
        if self._state() != value:
            self._put(self._mark.offset, value)

    def read(self, offset: int, length: int) -> bytes:
        """As `Store.read`."""
        return self._hidden(offset, self._store.read(offset, length))

    def read_back(self, offset: int, length: int) -> bytes:
        """As `Store.read_back`."""
        return self._hidden(offset, self._store.read_back(offset, length))

    def write(self, offset: int, content: memoryview) -> None:
        """As `Store.write`; the mark stays."""
        place = self._place(offset, len(content))
        if place is not None and self._mark is not None:
            marked = bytearray(content)
            marked[place] = self._mark.marked
            content = memoryview(marked)
        self._store.write(offset, content)

    def flush(self) -> None:
        """As `Store.flush`."""
        self._store.flush()

    def _hidden(self, offset: int, content: bytes) -> bytes:
        place = self._place(offset, len(content))
        if place is None or self._mark is None:
            return content
        known = {self._mark.after, self._mark.marked}
        if content[place] not in known:
            return content
        return content[:place] + bytes([self._mark.before]) + content[place + 1 :]

    def _place(self, offset: int, length: int) -> int | None:
        """Index of the byte in ``[offset, offset + length)``, if it is there."""
        if self._mark is None or not offset <= self._mark.offset < offset + length:
            return None
        return self._mark.offset - offset

    def _state(self) -> int:
        byte = b"" if self._mark is None else self._store.read(self._mark.offset, 1)
        return byte[0] if byte else -1

    def _put(self, offset: int, value: int) -> None:
        unit = self._store.alignment
        start = offset - offset % unit
        sector = bytearray(self._store.read(start, unit))
        sector[offset - start] = value
        self._store.write(start, memoryview(sector))
        self._store.flush()
        if self._store.read_back(start, unit) != sector:
            raise ReadBackDiffersError(start)


_FACT = "an edit of the boot partition is under way or was cut off: the image is half-edited"
_CODE = "image-half-edited"


def require_whole(state: int, name: str) -> None:
    """Return if the image ``name`` is not half-edited, by the state byte of its boot partition.

    Raises:
        ImageError: it is.
    """
    if is_edit_marked(state):
        raise ImageError(
            f"{name}: {_FACT}",
            code=_CODE,
            hint="Use a good copy, or write the card anew. The undo record lies where the edit was "
            "made: that of a file beside it, as .NAME.balenaflash-undo, that of a card with the "
            "user who edited it.",
        )


def warn_of_half_edited(state: int) -> tuple[str, ...]:
    """A sentence if an image is half-edited, by the state byte of its boot partition."""
    sentence = CodedText(f"{_FACT[0].upper()}{_FACT[1:]}.", code=_CODE)
    return (sentence,) if is_edit_marked(state) else ()


MAX_REPLACEMENT = MIB
"""Bytes that one replacement has at most."""

_MAGIC = b"balenaflash-undo"
_VERSION = 2
_HEADER = struct.Struct("<16sIIQQBB")
_NO_MARK = (1 << 64) - 1
_PLACE = struct.Struct("<QQ")
_DIGEST_SIZE = 8
_END_SIZE = 16
_NAME_MAX = 255  # bytes, linux/limits.h
_MAX_IN_MEMORY = 64 * MIB
_SLACK = MIB  # bytes that a record may be larger than twice its image, which none comes near


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


class ForeignRecordError(Exception):
    """The record is neither ours nor root's nor the image owner's, and so tells nothing."""


class UndoRecord:
    """An open record; the image may have been written only if the record was finished."""

    def __init__(self, file: "RecordFile", descriptor: int, *, is_finished: bool) -> None:
        self._file = file
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size - _END_SIZE
        header = os.pread(descriptor, _HEADER.size, 0)
        _magic, _version, self._count, self.image_size, offset, before, after = _HEADER.unpack(
            header
        )
        self.mark = None if offset == _NO_MARK else EditMark(offset, before, after)
        self.is_finished = is_finished

    def replacements(self) -> Iterator[Replacement]:
        """All of them in order, each read when it is asked for.

        Raises:
            EditError: what the record says cannot be.
        """
        position, end = _HEADER.size, 0
        for _ in range(self._count):
            offset, length = _PLACE.unpack(self._read(position, _PLACE.size))
            is_in_order = end <= offset <= self.image_size - length
            if not (is_in_order and 0 < length <= MAX_REPLACEMENT):
                raise self._damaged()
            position += _PLACE.size
            old = self._read(position, length)
            position += length
            count = sum(1 for _ in sector_slices(offset, length))
            digests = self._read(position, count * _DIGEST_SIZE)
            position += len(digests)
            end = offset + length
            yield Replacement(
                offset,
                old,
                tuple(
                    digests[start : start + _DIGEST_SIZE]
                    for start in range(0, len(digests), _DIGEST_SIZE)
                ),
            )
        if position != self._end:
            raise self._damaged()

    def old_patches(self) -> tuple[Patch, ...] | None:
        """What makes the image again what it was; ``None`` for more than belongs into memory.

        Errors as `replacements`.
        """
        if self._end > _MAX_IN_MEMORY:
            return None
        return tuple(Patch(each.offset, each.old) for each in self.replacements())

    def _read(self, position: int, length: int) -> bytes:
        """Bytes of the record, all of them."""
        content = b""
        if position + length <= self._end:
            content = os.pread(self._descriptor, length, position)
        if len(content) != length:
            raise self._damaged()
        return content

    def _damaged(self) -> EditError:
        return cannot_undo(self._file, f"{self._file.path} is damaged")


@dataclass(frozen=True, slots=True)
class RecordFile:
    """Where the undo record of one image or card is kept, and what to tell of it."""

    path: Path
    subject: str
    """What it is the record of, as messages call that."""

    owner: int
    """User that the image belongs to: in a directory that others may write to, a record of
    anybody else than them, root or ourselves is ignored."""

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


def forget_record(image: Path) -> None:
    """Remove the record beside ``image``, all of which has been replaced; none is no error."""
    path = undo_path(image)
    # One that we may not remove is not ours, and is ignored.
    with suppress(PermissionError), open_folder(path.parent) as folder:
        folder.remove(path.name)


def write_record(
    file: RecordFile,
    image_size: int,
    mark: EditMark | None,
    count: int,
    replacements: Iterable[Replacement],
) -> None:
    """Keep the record of ``count`` replacements, safe from a loss of power.

    It holds parts of files that may be secret, so only the owner of the image may read it.

    Raises:
        EditError: it cannot be made; nothing is left of it.
    """
    header = _encode_header(image_size, mark, count)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open_folder(file.path.parent) as folder:
            record = os.open(file.path.name, flags, 0o600, dir_fd=folder.descriptor)
            try:
                with os.fdopen(record, "wb") as stream:
                    if os.geteuid() == 0:
                        os.fchown(record, file.owner, file.group)
                    stream.writelines(_encode(header, replacements))
                    stream.flush()
                    os.fsync(record)
                folder.flush()
            except BaseException:
                folder.remove(file.path.name)
                raise
    except OSError as error:
        raise _cannot_keep(file, error) from error


def remove_record(file: RecordFile) -> None:
    """Remove the record, for good even if the power is lost; none is no error."""
    with open_folder(file.path.parent) as folder:
        folder.remove(file.path.name)
        folder.flush()


@contextmanager
def open_record(file: RecordFile, image_size: int) -> Iterator[UndoRecord | None]:
    """The record of an image of ``image_size`` bytes; ``None`` if not even its header is there.

    Raises:
        FileNotFoundError: there is none.
        ForeignRecordError: somebody else made it.
        EditError: it cannot be read, or what it says cannot be.
    """
    descriptor = _open(file)
    try:
        size = os.fstat(descriptor).st_size
        if size > 2 * image_size + _SLACK:
            raise cannot_undo(file, f"{file.path} is larger than any record of this image")
        header = os.pread(descriptor, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            yield None
            return
        if _HEADER.unpack(header)[1] != _VERSION:
            raise cannot_undo(file, f"{file.path} is of another version of balenaflash")
        yield UndoRecord(file, descriptor, is_finished=_has_valid_end(descriptor, size))
    finally:
        os.close(descriptor)


def has_record(file: RecordFile) -> bool:
    """Whether there is a record, of whatever content.

    Raises:
        ForeignRecordError: somebody else made it.
    """
    try:
        _require_known(file, file.path.lstat())
    except OSError:  # none, or one that the opening for a change, which looks again, tells about
        return os.path.lexists(file.path)
    return True


def _open(file: RecordFile) -> int:
    try:
        with open_folder(file.path.parent) as folder:
            status = folder.find(file.path.name)
            if status is not None:
                _require_known(file, status)
            descriptor = folder.open_file(file.path.name)
    except OSError as error:
        # A name that is too long for a record cannot be that of one.
        if error.errno in {errno.ENOENT, errno.ENAMETOOLONG}:
            raise FileNotFoundError(error.errno, error.strerror) from error
        raise cannot_undo(file, f"{file.path}: {error.strerror}") from error
    try:
        _require_known(file, os.fstat(descriptor))  # it may have been exchanged since
    except ForeignRecordError:
        os.close(descriptor)
        raise
    return descriptor


def _require_known(file: RecordFile, status: os.stat_result) -> None:
    if status.st_uid not in {file.owner, os.geteuid(), 0}:
        raise ForeignRecordError


def _has_valid_end(descriptor: int, size: int) -> bool:
    checksum = xxhash.xxh3_128()
    end = max(_HEADER.size, size - _END_SIZE)
    for start in range(0, end, MAX_REPLACEMENT):
        checksum.update(os.pread(descriptor, min(MAX_REPLACEMENT, end - start), start))
    return checksum.digest() == os.pread(descriptor, _END_SIZE, end)


def _encode_header(image_size: int, mark: EditMark | None, count: int) -> bytes:
    mark = mark or EditMark(_NO_MARK, 0, 0)
    return _HEADER.pack(_MAGIC, _VERSION, count, image_size, mark.offset, mark.before, mark.after)


def _encode(header: bytes, replacements: Iterable[Replacement]) -> Iterator[bytes]:
    checksum = xxhash.xxh3_128()
    for block in _body(header, replacements):
        checksum.update(block)
        yield block
    yield checksum.digest()


def _body(header: bytes, replacements: Iterable[Replacement]) -> Iterator[bytes]:
    yield header
    for replacement in replacements:
        yield _PLACE.pack(replacement.offset, len(replacement.old))
        yield replacement.old
        yield b"".join(replacement.new_digests)


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
        hint=f"Remove {file.path}, which belongs to somebody else."
        if isinstance(error, FileExistsError)
        else f"An edit keeps what it replaces in {file.path.parent} until it is done.",
    )
