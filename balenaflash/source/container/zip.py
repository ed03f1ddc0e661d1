"""The image in a zip file, found by the central directory or in a stream by local headers.

The rule is that of a zip file read by its directory, `balenaflash.source.container.zip`,
with the one difference that a stream does not tell what follows: the first member that may be
the image is the image, and whatever comes after it is passed over. A warning names what may be the
image as well, since the directory at the end lists it.
"""

import errno
import io
import struct
import zipfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from balenaflash.errors import CodedText, ImageError
from balenaflash.source.container.decoder import (
    DOWNLOAD_AGAIN,
    Container,
    Decoder,
    Input,
    Origin,
    corrupt,
    cut_short,
)
from balenaflash.source.container.parallel import PiecesDecoder
from balenaflash.source.container.zip_member import (
    FIXED_SIZE,
    STORED,
    LocalHeader,
    MemberDecoder,
    MemberSizes,
    Method,
    lengths_behind,
    marks_its_end,
    parse_header,
    usable_method,
)
from balenaflash.units import GIB, KIB, MIB, format_size

LARGEST_OTHER = 16 * MIB
"""Bytes above which a member is as good as named as an image, unless it is named otherwise.

A stream is read in its order, so smaller members are kept until it is known whether an image
follows them.
"""

_IMAGE_SUFFIXES = (".img", ".balenaos-img", ".wic", ".raw", ".iso", ".bin", ".sdcard", ".hddimg")
_COMPRESSED_SUFFIXES = ("", ".gz", ".xz", ".bz2", ".zst")
_COMPANION_SUFFIXES = (
    *(".bmap", ".json", ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".rtf", ".doc", ".docx"),
    *(".yml", ".yaml", ".xml", ".toml", ".ini", ".cfg", ".conf", ".csv", ".log", ".list"),
    *(".sig", ".asc", ".pem", ".crt", ".p7s", ".sum", ".md5", ".sha1", ".sha256", ".sha512"),
    *(".md5sum", ".sha1sum", ".sha256sum", ".sha512sum", ".torrent", ".zsync", ".url", ".lnk"),
    *(".png", ".jpg", ".jpeg", ".gif", ".svg", ".ico"),
    *(".sh", ".bash", ".py", ".bat", ".cmd", ".ps1", ".exe", ".msi", ".dll", ".desktop"),
)
"""What lies beside an image and is none: notes, checksums, pictures, programs that flash it."""

_COMPANION_NAMES = frozenset(
    {
        *("readme", "license", "licence", "copying", "changelog", "version"),
        *("md5sums", "sha1sums", "sha256sums", "sha512sums"),
        *("thumbs.db", "ehthumbs.db"),  # of Windows Explorer, as desktop.ini is
    }
)

_MAX_LISTED = 10


class Standing(Enum):
    """What the name of a member, and its size, say about it."""

    IMAGE = auto()
    PERHAPS = auto()
    """The image where no other member is one."""

    NEVER = auto()
    """Not the image, unless it was asked for by name."""


def standing_of(member: str, size: int = 0) -> Standing:
    """What to think of ``member`` of ``size`` bytes, unpacked."""
    parts = member.split("/")
    last = parts[-1].lower()
    # An archiver's own, hidden files, and the folder that Etcher knows: .meta.
    is_hidden = any(
        part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in parts
    )
    if not last or is_hidden:
        return Standing.NEVER
    endings = (suffix + more for suffix in _IMAGE_SUFFIXES for more in _COMPRESSED_SUFFIXES)
    if last.endswith(tuple(endings)):
        return Standing.IMAGE
    if last in _COMPANION_NAMES or last.endswith(_COMPANION_SUFFIXES):
        return Standing.NEVER
    return Standing.IMAGE if size > LARGEST_OTHER else Standing.PERHAPS


def is_called(member: str, wanted: str) -> bool:
    """Whether ``wanted`` is the whole name of ``member``, or its last part."""
    return wanted in {member, member.rpartition("/")[2]}


def choose_member(name: str, members: Mapping[str, int], wanted: str | None) -> str:
    """The one of ``members``, the files in the zip file ``name``, that is the image.

    It is the one that was asked for, by its whole name or its last part; else the only one named
    as an image, or large; else, where none is, the only one not named as a companion of an image.
    ``members`` has the size of each.

    Raises:
        ImageError: it cannot be told, or is not there.
    """
    if wanted is not None:
        if wanted in members:
            return wanted
        found = [member for member in members if is_called(member, wanted)]
        return _only(name, found, members, f"holds no file {wanted!r}")
    standings = {member: standing_of(member, size) for member, size in members.items()}
    named = [member for member in members if standings[member] is Standing.IMAGE]
    others = [member for member in members if standings[member] is Standing.PERHAPS]
    return _only(name, named or others, members, "holds no image")


def _only(name: str, found: list[str], members: Mapping[str, int], none_found: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ImageError(
            f"{name}: holds {len(found)} files that may be the image: {_listed(found)}",
            code="zip-member-ambiguous",
            hint="Name one of them with --member NAME.",
        )
    raise ImageError(
        f"{name}: {none_found}, only: {_listed(list(members)) or 'nothing'}",
        code="zip-member-missing",
        hint="Name one of them with --member NAME." if members else None,
    )


def _listed(members: list[str]) -> str:
    shown = ", ".join(map(repr, members[:_MAX_LISTED]))
    return f"{shown} and {len(members) - _MAX_LISTED} more" if members[_MAX_LISTED:] else shown


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


_AFTER_MEMBERS = frozenset({b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08"})
"""APPNOTE 6.3.10: the directory (section 4.3.12), its end (4.3.16, 4.3.14), extra data (4.3.11)."""

END_MAGIC = b"PK\x05\x06"
_DESCRIPTOR_MAGIC = b"PK\x07\x08"  # section 4.3.9
_DESCRIPTOR_LAYOUTS = (struct.Struct("<IQQ"), struct.Struct("<III"))
_MAX_PASSED = GIB  # bytes decoded of a member that is not the image
_MAX_END = MIB  # bytes kept of the end: the directory, and its end record with its comment

_HINT = "Download the file first, or pipe the image unpacked: unzip -p"


@dataclass(frozen=True, slots=True)
class StreamedZip:
    """An image in a zip file of which the beginning was read."""

    source: Input
    header: LocalHeader
    decoder: Decoder

    @property
    def container(self) -> Container:
        """What it is packed with."""
        return Container.ZIP

    @property
    def size(self) -> int | None:
        """Bytes of the image, where the member's header says so."""
        return None if self.header.sizes is None else self.header.sizes.content

    @property
    def member(self) -> str:
        """Its name in the zip file."""
        return self.header.name

    @property
    def seekable(self) -> bool:
        """Never: the bytes come once."""
        return False

    def open_decoder(self, at: int = 0) -> Decoder:
        """The only decoder, from the start; see ``Compressed``."""
        if at:
            raise ValueError(at)
        return self.decoder


def find_streamed(origin: Origin, wanted: str | None, warn: Callable[[str], None]) -> StreamedZip:
    """The image in a zip file read from its start.

    Small members that are the image only where no other is one are kept until the end. Unless
    ``wanted`` names the image, ``warn`` is called at the end if another member may be it.

    Raises:
        ImageError: there is none, or it cannot be told where it ends.
    """
    source = Input(origin)
    passed: dict[str, LocalHeader] = {}
    content = b""
    while (header := _read_header(source)) is not None:
        standing = standing_of(header.name)
        if _is_image(header.name, standing, wanted):
            decoder = _ImageDecoder(source, header, None if wanted else warn)
            return StreamedZip(source, header, decoder)
        if standing is Standing.PERHAPS and wanted is None and _can_be_decoded(source, header):
            reader = _MemberReader(source, header)
            head = _read_up_to(reader, LARGEST_OTHER + 1)
            if len(head) > LARGEST_OTHER:
                decoder = _ImageDecoder(source, header, warn, reader, head)
                return StreamedZip(source, header, decoder)
            # The last one is enough: of two neither is the image.
            content = content if header.name in passed else head
        else:
            _pass_over(source, header)
        passed.setdefault(header.name, header)
    _read_to_end(source, 0)
    files = {name: 0 for name in passed if not name.endswith("/")}
    header = passed[choose_member(origin.name, files, wanted)]
    usable_method(origin.name, header)
    return StreamedZip(source, header, _KeptDecoder(content))


class _MemberReader:
    """A member, and the sizes that follow it."""

    def __init__(self, source: Input, header: LocalHeader) -> None:
        self._input = source
        self._header = header
        method = usable_method(source.name, header)
        self._decoder = MemberDecoder(source, method, header.sizes)
        self._ended = False

    @property
    def done(self) -> int:
        """Bytes of the member that were decoded."""
        return self._decoder.seen.content

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = self._decoder.readinto(buffer)
        if filled < len(buffer) and not self._ended:
            self._ended = True
            if self._header.sizes is None:
                self._check_descriptor(self._decoder.seen)
        return filled

    def close(self) -> None:
        """Give memory back."""
        self._decoder.close()

    def _check_descriptor(self, seen: MemberSizes) -> None:
        """Compare the member with the CRC and sizes that follow it (section 4.3.9).

        Sizes have 8 bytes where the header has a zip64 field. Go and Java, which cannot know
        beforehand, write such a field never and 8 bytes of what is larger than 4 GiB; others
        write 8 always. So it is told by what agrees. The magic in front may be left out.
        """
        wanted = (seen.crc, seen.stored, seen.content)
        data = self._input.read(4 + _DESCRIPTOR_LAYOUTS[0].size)
        for start in (4, 0) if data[:4] == _DESCRIPTOR_MAGIC else (0,):
            for layout in _DESCRIPTOR_LAYOUTS:
                end = start + layout.size
                if len(data) >= end and layout.unpack_from(data, start) == wanted:
                    self._input.put_back(data[end:])
                    return
        if len(data) < 4 + _DESCRIPTOR_LAYOUTS[1].size:
            raise cut_short(self._input.name, Container.ZIP, self._input.position, seen.content)
        why = "does not have the size and CRC-32 that it should"
        raise corrupt(self._input.name, Container.ZIP, self._input.position, seen.content, why)


class _ImageDecoder:
    """The member that is the image, and everything after it up to the end of the zip file.

    ``head`` is what was already decoded of it. ``warn`` is told of other images at the end.
    """

    def __init__(
        self,
        source: Input,
        header: LocalHeader,
        warn: Callable[[str], None] | None,
        reader: _MemberReader | None = None,
        head: bytes = b"",
    ) -> None:
        _require_end(source.name, header)
        self._input = source
        self._member = header.name
        self._warn = warn
        self._reader = reader or _MemberReader(source, header)
        self._head = _KeptDecoder(head)
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = self._head.readinto(buffer)
        if filled < len(buffer):
            filled += self._reader.readinto(buffer[filled:])
        if filled < len(buffer) and not self._ended:
            self._ended = True
            tail = _read_to_end(self._input, self._reader.done)
            if self._warn is not None:
                _warn_of_others(_Tail(self._input, tail), self._member, self._warn)
        return filled

    def close(self) -> None:
        """Give memory back."""
        self._reader.close()


class _KeptDecoder:
    """A member that was decoded before."""

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Hold nothing."""


class _Tail:
    """The end of a zip file that was passed over, with its directory."""

    def __init__(self, source: Input, content: bytes) -> None:
        self.name = source.name
        self.size = source.position
        self._content = content
        self._start = self.size - len(content)

    def read_at(self, offset: int, length: int) -> bytes:
        """The bytes from ``offset`` on; none of those that were not kept."""
        start = offset - self._start
        return self._content[start : start + length] if start >= 0 else b""


def _warn_of_others(tail: _Tail, used: str, warn: Callable[[str], None]) -> None:
    """Warn if, by its directory, the zip file would be refused when read as a file."""
    try:
        files = read_directory(tail, tail.size)
    except ImageError:
        return  # it is longer than what was kept of the end
    sizes = {file.filename: file.file_size for file in files if not file.filename.endswith("/")}
    try:
        choose_member(tail.name, sizes, None)
    except ImageError as error:
        (problem,) = error.problems
        text = f"{problem.message}; {used!r}, the first, was used. {problem.hint}"
        warn(CodedText(text, code=problem.code))


def _is_image(member: str, standing: Standing, wanted: str | None) -> bool:
    if wanted is None:
        return standing is Standing.IMAGE
    return not member.endswith("/") and is_called(member, wanted)


def _require_end(zip_name: str, header: LocalHeader) -> None:
    """Refuse a member of which nothing tells where it ends."""
    if header.sizes is None and not marks_its_end(header):
        raise ImageError(
            f"{zip_name}: does not say in front of {header.name!r} how long it is",
            code="image-unsupported",
            hint=_HINT,
        )


def _can_be_decoded(source: Input, header: LocalHeader) -> bool:
    """Whether it is worth looking at a member that was not asked for."""
    try:
        usable_method(source.name, header)
    except ImageError:
        return False
    return header.sizes is not None or marks_its_end(header)


def _read_header(source: Input) -> LocalHeader | None:
    """The header of the next member; ``None`` where the directory comes."""
    place = source.position
    fixed = source.read(FIXED_SIZE)
    if fixed[:4] in _AFTER_MEMBERS:
        source.put_back(fixed)
        return None
    rest = source.read(lengths_behind(fixed)) if len(fixed) == FIXED_SIZE else b""
    return parse_header(source.name, fixed + rest, place)


def _pass_over(source: Input, header: LocalHeader) -> None:
    """Read on to behind a member that is not the image."""
    if header.sizes is not None:
        left = header.sizes.stored
        while left and (data := source.read(min(left, Input.CHUNK_SIZE))):
            left -= len(data)
        return
    _require_end(source.name, header)
    reader = _MemberReader(source, header)
    buffer = memoryview(bytearray(_PIECE_SIZE))
    while reader.readinto(buffer) == len(buffer):
        if reader.done > _MAX_PASSED:
            raise ImageError(
                f"{source.name}: {header.name!r} in it is not the image and unpacks to more than "
                f"{format_size(_MAX_PASSED)}",
                code="image-unsupported",
                hint=_HINT,
            )


def _read_up_to(reader: _MemberReader, length: int) -> bytes:
    content = bytearray()
    buffer = memoryview(bytearray(_PIECE_SIZE))
    while len(content) < length:
        count = reader.readinto(buffer[: length - len(content)])
        if not count:
            break
        content += buffer[:count]
    return bytes(content)


def _read_to_end(source: Input, done: int) -> bytes:
    """Pass over what is left, and give the last of it.

    Raises:
        ImageError: it does not end with an end record, as a zip file that is whole does.
    """
    tail = b""
    while data := source.read():
        tail = (tail + data)[-_MAX_END:]
    end = tail.rfind(END_MAGIC)
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    if end < 0 or len(tail) < end + 22 + comment:
        raise cut_short(source.name, Container.ZIP, source.position, done)
    return tail
