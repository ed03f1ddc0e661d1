"""The undo record of an edit under way, and the mark of the edit in the volume itself.

The record is kept outside the image. The mark is in the state byte of a FAT boot sector
(linux/msdos_fs.h, ``state``; offset 37, in FAT32 65). Bit 0 of it means "not unmounted": Linux
warns of it when it mounts the volume, fsck.vfat reports it. The upper four bits are zero
everywhere else; the value here distinguishes an edit that was cut off from a card that was
pulled. Linux and fsck.vfat do not change them.

The format, little-endian: a header (magic, version, number of replacements, size of the image,
and the `EditMark`: its offset, the byte before and after); for each replacement, in ascending
order, its offset and length, the old bytes, and 8 bytes of XXH3 of each new sector; at the end 16
bytes of XXH3 over everything before. A record without a valid end was never finished. The image
is written only after its record, so that image was not yet touched.

A record may come with an image from anywhere: nothing in it is believed unchecked, and no more
than a piece of it is in memory.
"""

import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, Self

import xxhash

from balenaflash.durable import open_folder
from balenaflash.errors import CodedText, EditError, ImageError
from balenaflash.source.layers import Patch
from balenaflash.units import MIB, SECTOR_SIZE, Extent, align_down, align_up


class StoreFailedError(Exception):
    """Reading or writing failed; the state of the range that was being written is unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """The reason, to follow the name of the store and a colon."""


class ReadBackDiffersError(Exception):
    """The medium does not hold what it accepted."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset
        """Start of the range that differs, in bytes from the start of the image."""


class Store(Protocol):
    """A medium that is read, rewritten in place and read back; every range lies inside."""

    @property
    def size(self) -> int:
        """Bytes from start to end."""

    @property
    def alignment(self) -> int:
        """Unit in bytes: offset and length of every write are multiples of it."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes ``[offset, offset + length)``; fewer if a file ends before.

        Raises:
            StoreFailedError: they cannot be read.
        """

    def write(self, offset: int, content: memoryview) -> None:
        """Replace the bytes from ``offset`` on; after a failure each sector is old or new.

        Raises:
            StoreFailedError: not all of it was written.
        """

    def flush(self) -> None:
        """Return when everything written would survive a loss of power.

        Raises:
            StoreFailedError: it may not survive.
        """

    def read_back(self, offset: int, length: int) -> bytes:
        """Like `read`, from the medium and not from a cache; the range has been flushed."""


class FileStore:
    """An open file; the caller closes it."""

    alignment = 1

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        content = bytearray()
        with _failures("read"):
            while len(content) < length:
                block = os.pread(self._descriptor, length - len(content), offset + len(content))
                if not block:
                    break
                content += block
        return bytes(content)

    def write(self, offset: int, content: memoryview) -> None:
        done = 0
        with _failures("written"):
            while done < len(content):
                done += os.pwrite(self._descriptor, content[done:], offset + done)

    def flush(self) -> None:
        with _failures("written"):
            os.fsync(self._descriptor)

    def read_back(self, offset: int, length: int) -> bytes:
        """Like `read`, after dropping the range from the cache; mapped pages stay there.

        The kernel keeps pages that lie only partly in the range (posix_fadvise(2)).
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


@dataclass(frozen=True, slots=True)
class EditMark:
    """The byte of an image that marks an edit under way, and its values outside the edit."""

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
    """A store as it is without the mark: the marked byte reads as before the edit, and stays."""

    def __init__(self, store: Store, mark: EditMark | None) -> None:
        self._store = store
        self._mark = mark

    @property
    def size(self) -> int:
        return self._store.size

    @property
    def alignment(self) -> int:
        return self._store.alignment

    @property
    def is_marked(self) -> bool:
        """True if the edit has begun and has not ended, or has no mark."""
        return self._mark is None or self._state(self._mark) == self._mark.marked

    def begin(self) -> None:
        """Set the mark, on the medium too, before the first byte of the edit is written.

        Raises:
            StoreFailedError: the mark may be there or not.
            ReadBackDiffersError: it is not as it was written.
        """
        if self._mark is not None:
            self._set_state(self._mark, self._mark.marked)

    def end(self, *, undone: bool) -> None:
        """Remove the mark, after the last byte was flushed; errors as `begin`."""
        if self._mark is not None:
            value = self._mark.before if undone else self._mark.after
            if self._state(self._mark) != value:
                self._set_state(self._mark, value)

    def read(self, offset: int, length: int) -> bytes:
        return self._hidden(offset, self._store.read(offset, length))

    def read_back(self, offset: int, length: int) -> bytes:
        return self._hidden(offset, self._store.read_back(offset, length))

    def write(self, offset: int, content: memoryview) -> None:
        mark = self._mark
        if mark is not None and offset <= mark.offset < offset + len(content):
            marked = bytearray(content)
            marked[mark.offset - offset] = mark.marked
            content = memoryview(marked)
        self._store.write(offset, content)

    def flush(self) -> None:
        self._store.flush()

    def _hidden(self, offset: int, content: bytes) -> bytes:
        mark = self._mark
        if mark is None or not offset <= mark.offset < offset + len(content):
            return content
        place = mark.offset - offset
        if content[place] not in {mark.after, mark.marked}:
            return content
        return content[:place] + bytes([mark.before]) + content[place + 1 :]

    def _state(self, mark: EditMark) -> int:
        byte = self._store.read(mark.offset, 1)
        return byte[0] if byte else -1

    def _set_state(self, mark: EditMark, value: int) -> None:
        unit = self._store.alignment
        start = align_down(mark.offset, unit)
        sector = bytearray(self._store.read(start, unit))
        sector[mark.offset - start] = value
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
    if _is_edit_marked(state):
        raise ImageError(
            f"{name}: {_FACT}",
            code=_CODE,
            hint="Use a good copy, or write the card anew. The undo record is kept where the edit "
            "was made: beside an image file, as .NAME.balenaflash-undo; for a card, with the user "
            "who edited it.",
        )


def warn_of_half_edited(state: int) -> tuple[str, ...]:
    """A sentence if an image is half-edited, by the state byte of its boot partition."""
    sentence = CodedText(f"{_FACT[0].upper()}{_FACT[1:]}.", code=_CODE)
    return (sentence,) if _is_edit_marked(state) else ()


def _is_edit_marked(state: int) -> bool:
    """True if the state byte marks an edit under way.

    A program that clears "not unmounted", such as fsck.vfat, has accepted the volume as it is.
    """
    return state & ~_OTHERS == _EDIT | _NOT_UNMOUNTED


MAX_REPLACEMENT = MIB
"""Most bytes of one replacement."""

_MAGIC = b"balenaflash-undo"
_VERSION = 2
_HEADER = struct.Struct("<16sIIQQBB")
_NO_MARK = (1 << 64) - 1
_PLACE = struct.Struct("<QQ")
_DIGEST_SIZE = 8
_END_SIZE = 16
_NAME_MAX = 255  # bytes, linux/limits.h
_MAX_IN_MEMORY = 64 * MIB
_SLACK = MIB  # bytes; no record of this program is larger than twice its image by that much


def sector_slices(offset: int, length: int) -> Iterator[slice]:
    """The pieces of ``[offset, offset + length)`` in each sector, relative to ``offset``.

    The first and the last piece are shorter than a sector if the range is not aligned. A write
    that is cut off leaves each of these pieces wholly old or wholly new.
    """
    for piece in Extent(offset, offset + length).cut(SECTOR_SIZE):
        yield slice(piece.start - offset, piece.end - offset)


def sector_digest(content: bytes | memoryview) -> bytes:
    """Digest by which a sector or a piece of one is recognised; not a proof against forgery."""
    return xxhash.xxh3_64_digest(content)


@dataclass(frozen=True, slots=True)
class Replacement:
    """A range of the image that is being replaced."""

    offset: int
    """Offset of the first byte, in bytes from the start of the image."""

    old: bytes
    """The bytes before the edit."""

    new_digests: tuple[bytes, ...]
    """`sector_digest` of each new piece of `sector_slices`."""

    @classmethod
    def between(cls, offset: int, old: bytes, new: memoryview) -> Self:
        """The replacement of ``old`` at ``offset`` by ``new``, of the same length."""
        slices = sector_slices(offset, len(old))
        return cls(offset, old, tuple(sector_digest(new[piece]) for piece in slices))

    def pieces(self) -> Iterator[tuple[slice, bytes]]:
        """The sectors within, relative to ``offset``, and the digest of the new bytes of each."""
        return zip(sector_slices(self.offset, len(self.old)), self.new_digests, strict=True)


class ForeignRecordError(Exception):
    """The record is neither ours nor root's nor the image owner's, and is not believed."""


class UndoRecord:
    """An open record; the image may have been written only if the record was finished."""

    def __init__(self, file: "RecordFile", descriptor: int, *, is_finished: bool) -> None:
        self._file = file
        self._descriptor = descriptor
        self._end = os.fstat(descriptor).st_size - _END_SIZE
        header = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
        _magic, _version, self._count, self.image_size, *mark = header
        self.mark = None if mark[0] == _NO_MARK else EditMark(*mark)
        self.is_finished = is_finished

    def replacements(self) -> Iterator[Replacement]:
        """All replacements in order, each read when it is asked for.

        Raises:
            EditError: the record is damaged.
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
            starts = range(0, len(digests), _DIGEST_SIZE)
            cut = tuple(digests[start : start + _DIGEST_SIZE] for start in starts)
            yield Replacement(offset, old, cut)
        if position != self._end:
            raise self._damaged()

    def old_patches(self) -> tuple[Patch, ...] | None:
        """The patches that undo the edit; ``None`` if they are too many for memory.

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
    """The place of the undo record of one image or card, and its words for messages."""

    path: Path
    subject: str
    """Name of the image or card in messages."""

    owner: int
    """User that the image belongs to.

    In a directory that others may write to, a record of any other user than this one, root or
    ourselves is ignored.
    """

    group: int
    undone_by: str = "the next command that opens it"
    """The command that deals with a record that was left."""

    if_stuck: str = "Replace the image by a good copy"
    """Advice if the record cannot be dealt with."""


def record_beside(image: Path, descriptor: int) -> RecordFile:
    """The place of the record of the image file that is open as ``descriptor``."""
    status = os.fstat(descriptor)
    return RecordFile(undo_path(image), str(image), status.st_uid, status.st_gid)


def undo_path(image: Path) -> Path:
    """Path of the record of ``image``: beside the file itself, not beside a link to it.

    Its name contains that of the image, or a digest of it if that would be too long.
    """
    real = image.resolve()
    name = f".{real.name}.balenaflash-undo"
    if len(os.fsencode(name)) > _NAME_MAX:
        name = f".{hashlib.sha256(os.fsencode(real.name)).hexdigest()}.balenaflash-undo"
    return real.with_name(name)


def forget_record(image: Path) -> None:
    """Remove the record, if any, beside ``image``, all of which has been replaced."""
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
        EditError: the record cannot be made; nothing is left of it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open_folder(file.path.parent) as folder:
            record = os.open(file.path.name, flags, 0o600, dir_fd=folder.descriptor)
            try:
                with os.fdopen(record, "wb") as stream:
                    if os.geteuid() == 0:
                        os.fchown(record, file.owner, file.group)
                    stream.writelines(_encode(image_size, mark, count, replacements))
                    stream.flush()
                    os.fsync(record)
                folder.flush()
            except BaseException:
                folder.remove(file.path.name)
                raise
    except OSError as error:
        hint = f"An edit keeps what it replaces in {file.path.parent} until it is done."
        if isinstance(error, FileExistsError):
            hint = f"Remove {file.path}, which belongs to another user."
        raise EditError(
            f"{file.subject}: cannot be edited safely: its undo record cannot be made: "
            f"{error.strerror}",
            code="undo-record-failed",
            hint=hint,
        ) from error


def remove_record(file: RecordFile) -> None:
    """Remove the record, if any, so that it stays removed after a loss of power."""
    with open_folder(file.path.parent) as folder:
        folder.remove(file.path.name)
        folder.flush()


@contextmanager
def open_record(file: RecordFile, image_size: int) -> Iterator[UndoRecord | None]:
    """The record of an image of ``image_size`` bytes; ``None`` if not even its header is there.

    Raises:
        FileNotFoundError: there is no record.
        ForeignRecordError: another user made it.
        EditError: it cannot be read, is too large, or of another version.
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
    """True if there is a record, of whatever content.

    Raises:
        ForeignRecordError: another user made it.
    """
    try:
        _require_known(file, file.path.lstat())
    except OSError:  # no record, or one that opening the image for an edit will report
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
        # A name that is too long for a record is not the name of one.
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


def _encode(
    image_size: int, mark: EditMark | None, count: int, replacements: Iterable[Replacement]
) -> Iterator[bytes]:
    mark = mark or EditMark(_NO_MARK, 0, 0)
    header = (_MAGIC, _VERSION, count, image_size, mark.offset, mark.before, mark.after)
    blocks = (
        block
        for each in replacements
        for block in (_PLACE.pack(each.offset, len(each.old)), each.old, *each.new_digests)
    )
    checksum = xxhash.xxh3_128()
    for block in chain([_HEADER.pack(*header)], blocks):
        checksum.update(block)
        yield block
    yield checksum.digest()


def cannot_undo(file: RecordFile, reason: str) -> EditError:
    """The error for an interrupted edit that cannot be dealt with."""
    return EditError(
        f"{file.subject}: an edit of it was cut off and cannot be undone: {reason}",
        code="undo-impossible",
        hint=f"{file.if_stuck}, and remove {file.path}.",
    )
