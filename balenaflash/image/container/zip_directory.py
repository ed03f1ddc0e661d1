"""Members of a zip file that can be read anywhere, found by its central directory."""

import errno
import io
import struct
import zipfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol

from balenaflash.errors import ImageError
from balenaflash.extent import KIB, MIB
from balenaflash.image.container.decoder import DOWNLOAD_AGAIN, Decoder, Input, corrupt, cut_short
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.origin import Origin
from balenaflash.image.container.parallel import PiecesDecoder
from balenaflash.image.container.zip_choice import choose_member
from balenaflash.image.container.zip_header import (
    FIXED_SIZE,
    LocalHeader,
    lengths_behind,
    parse_header,
    usable_method,
)
from balenaflash.image.container.zip_member import MemberDecoder, MemberSizes
from balenaflash.image.container.zip_methods import STORED, Method

_MAX_DIRECTORY = 16 * MIB  # bytes of a central directory that are read at once
_PIECE_SIZE = 256 * KIB


class OffsetReader(Protocol):
    """What `read_directory` needs of an `Origin`."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on: ``length`` of them, or fewer."""


@dataclass(frozen=True, slots=True)
class ZippedImage:
    """An image in a zip file with a central directory."""

    origin: Origin
    member: str
    method: Method
    is_stored: bool
    sizes: MemberSizes
    data_start: int
    """Offset in the zip file of the member's first byte."""

    @property
    def container(self) -> Container:
        """What it is packed with."""
        return Container.ZIP

    @property
    def size(self) -> int:
        """Bytes of the image, by the central directory."""
        return self.sizes.content

    @property
    def seekable(self) -> bool:
        """Whether the member is not compressed."""
        return self.is_stored

    def open_decoder(self, at: int = 0) -> Decoder:
        """A decoder from the image's byte ``at`` on; only one from the start checks the CRC."""
        if at:
            if not self.is_stored:
                raise ValueError(at)
            return PiecesDecoder(_stored_pieces(self.origin, self.data_start, self.size, at))
        return MemberDecoder(Input(self.origin, self.data_start), self.method, self.sizes)


def find_zipped(origin: Origin, size: int, member: str | None) -> ZippedImage:
    """The image in a zip file of ``size`` bytes; ``member`` is its name if there are several.

    Raises:
        ImageError: the file has no sound central directory, no such member, or the member cannot
            be decoded.
    """
    entry = _choose_entry(origin, size, member)
    sizes = MemberSizes(entry.compress_size, entry.file_size, entry.CRC)
    header = _read_own_header(origin, entry, sizes)
    method = usable_method(origin.name, header)
    start = entry.header_offset + header.length
    if start + sizes.stored > size:
        raise cut_short(origin.name, Container.ZIP, size, 0)
    return ZippedImage(origin, entry.filename, method, header.method == STORED, sizes, start)


def _choose_entry(origin: Origin, size: int, member: str | None) -> zipfile.ZipInfo:
    files: dict[str, zipfile.ZipInfo] = {}
    # In the order of a stream: of two with the same name the first counts.
    for entry in sorted(read_directory(origin, size), key=lambda each: each.header_offset):
        if not entry.filename.endswith("/"):
            files.setdefault(entry.filename, entry)
    sizes = {name: entry.file_size for name, entry in files.items()}
    return files[choose_member(origin.name, sizes, member)]


def _read_own_header(origin: Origin, entry: zipfile.ZipInfo, sizes: MemberSizes) -> LocalHeader:
    """The header in front of the member, which has to say the same, with its sizes."""
    place = entry.header_offset
    fixed = origin.read_at(place, FIXED_SIZE)
    length = FIXED_SIZE + (lengths_behind(fixed) if len(fixed) == FIXED_SIZE else 0)
    header = parse_header(origin.name, origin.read_at(place, length), place)
    is_same = (header.name, header.method) == (entry.filename, entry.compress_type)
    if not is_same or header.sizes not in {None, sizes}:
        why = "does not say of the member what the central directory says"
        raise corrupt(origin.name, Container.ZIP, place, 0, why)
    return replace(header, flags=entry.flag_bits, sizes=sizes)


def _stored_pieces(origin: Origin, start: int, size: int, at: int) -> Generator[bytes, None, None]:
    while at < size:
        data = origin.read_at(start + at, min(_PIECE_SIZE, size - at))
        if not data:
            raise cut_short(origin.name, Container.ZIP, start + at, at)
        yield data
        at += len(data)


def read_directory(origin: OffsetReader, size: int) -> list[zipfile.ZipInfo]:
    """The central directory of a zip file of ``size`` bytes.

    Raises:
        ImageError: it has none that is sound.
    """
    try:
        with zipfile.ZipFile(_File(origin, size)) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise ImageError(
            f"{origin.name}: has no sound central directory, as a zip file has at its end: {error}",
            code="image-cut-short",
            hint=DOWNLOAD_AGAIN,
        ) from error


class _File(io.RawIOBase):
    """An origin as ``zipfile`` wants it."""

    def __init__(self, origin: OffsetReader, size: int) -> None:
        super().__init__()
        self._origin = origin
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            # As a file does: zipfile looks for records that short files have no room for.
            raise OSError(errno.EINVAL, "a place before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        if wanted > _MAX_DIRECTORY:
            raise ValueError("it is too large")
        data = self._origin.read_at(self._position, wanted)
        self._position += len(data)
        return data
