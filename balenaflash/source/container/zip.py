"""The image in a zip file, found by the central directory or in a stream by local headers.

Both choose the same member, with one exception. A stream does not list what follows, so the first
member that may be the image is the image, and the rest of the stream is only read. The directory at
the end lists all members; if another one may be the image too, that is a warning.

Sections are those of APPNOTE 6.3.10.
"""

import errno
import io
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import Enum, auto
from itertools import chain

from balenaflash.errors import CodedText, ImageError
from balenaflash.source.container.decoder import (
    CHUNK_SIZE,
    DOWNLOAD_AGAIN,
    Compressed,
    Container,
    Input,
    Origin,
    Pieces,
    PiecesDecoder,
    corrupt,
    cut_short,
    unsupported,
)
from balenaflash.source.container.zip_decoding import (
    END_MAGIC,
    STORED,
    LocalHeader,
    MemberSizes,
    marks_its_end,
    member_pieces,
    read_header,
    usable_method,
)
from balenaflash.units import GIB, MIB, format_size

_LARGEST_OTHER = 16 * MIB
"""Bytes of a member above which any name means an image, except that of a companion.

A stream is read in order, so smaller members are kept until it is known whether an image follows.
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
"""Companions of an image: notes, checksums, pictures, programs that flash it."""

_COMPANION_NAMES = frozenset(
    {
        *("readme", "license", "licence", "copying", "changelog", "version"),
        *("md5sums", "sha1sums", "sha256sums", "sha512sums"),
        *("thumbs.db", "ehthumbs.db"),  # of Windows Explorer, as desktop.ini is
    }
)

_MAX_LISTED = 10


class _Standing(Enum):
    """Meaning of a member by its name and size."""

    IMAGE = auto()
    PERHAPS = auto()
    """The image if no other member is one."""

    NEVER = auto()
    """Not the image, unless the user names it."""


def _standing_of(member: str, size: int = 0) -> _Standing:
    """The standing of ``member``, which has ``size`` bytes when unpacked."""
    parts = member.split("/")
    last = parts[-1].lower()
    # Folders of an archiver, hidden files, and the folder for Etcher: .meta.
    is_hidden = any(
        part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in parts
    )
    if not last or is_hidden:
        return _Standing.NEVER
    endings = (suffix + more for suffix in _IMAGE_SUFFIXES for more in _COMPRESSED_SUFFIXES)
    if last.endswith(tuple(endings)):
        return _Standing.IMAGE
    if last in _COMPANION_NAMES or last.endswith(_COMPANION_SUFFIXES):
        return _Standing.NEVER
    return _Standing.IMAGE if size > _LARGEST_OTHER else _Standing.PERHAPS


def _is_called(member: str, wanted: str) -> bool:
    """True if ``wanted`` is the whole name of ``member``, or its last part."""
    return wanted in {member, member.rpartition("/")[2]}


def _choose_member(name: str, members: Mapping[str, int], wanted: str | None) -> str:
    """The image among ``members``, the files in the zip file ``name`` and their sizes.

    It is the member ``wanted``, by its whole name or its last part. Otherwise it is the only one
    that is named as an image, or large; if there is none, the only one not named as a companion.

    Raises:
        ImageError: there is no such member, or several.
    """
    if wanted is not None:
        if wanted in members:
            return wanted
        found = [member for member in members if _is_called(member, wanted)]
        return _only(name, found, members, f"contains no file {wanted!r}")
    standings = {member: _standing_of(member, size) for member, size in members.items()}
    named = [member for member in members if standings[member] is _Standing.IMAGE]
    others = [member for member in members if standings[member] is _Standing.PERHAPS]
    return _only(name, named or others, members, "contains no image")


def _only(name: str, found: list[str], members: Mapping[str, int], none_found: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ImageError(
            f"{name}: contains {len(found)} files that may be the image: {_listed(found)}",
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


def find_zipped(origin: Origin, size: int, wanted: str | None) -> Compressed:
    """The image in a zip file of ``size`` bytes, by its central directory.

    ``wanted`` is the name of the image's member; it is needed only if several may be the image.

    Raises:
        ImageError: the file has no intact central directory, no such member, or the member cannot
            be decoded.
    """
    entries = _read_directory(origin.name, size, origin.read_at)
    files = {name: entry.file_size for name, entry in entries.items()}
    entry = entries[_choose_member(origin.name, files, wanted)]
    source = Input(origin, entry.header_offset)
    header = read_header(source)
    sizes = MemberSizes(entry.compress_size, entry.file_size, entry.CRC)
    if (
        header is None
        or (header.name, header.method) != (entry.filename, entry.compress_type)
        or header.sizes not in {None, sizes}
    ):
        why = "contradicts the central directory"
        raise corrupt(origin.name, Container.ZIP, entry.header_offset, 0, why)
    start = source.position
    if start + sizes.stored > size:
        raise cut_short(origin.name, Container.ZIP, size, 0)
    header = replace(header, flags=entry.flag_bits, sizes=sizes)
    usable_method(origin.name, header)

    def open_decoder(at: int) -> PiecesDecoder:
        # Only a decoder from the start can check the CRC.
        if at:
            return PiecesDecoder(_stored_pieces(origin, start, sizes.content, at))
        return PiecesDecoder(member_pieces(Input(origin, start), header))

    is_stored = header.method == STORED
    return Compressed(Container.ZIP, open_decoder, sizes.content, header.name, is_stored)


def _stored_pieces(origin: Origin, start: int, size: int, at: int) -> Pieces:
    while at < size:
        data = origin.read_at(start + at, min(CHUNK_SIZE, size - at))
        if not data:
            raise cut_short(origin.name, Container.ZIP, start + at, at)
        yield data
        at += len(data)


_MAX_DIRECTORY = 16 * MIB  # bytes of a central directory that are read at once


def _read_directory(
    name: str, size: int, read_at: Callable[[int, int], bytes]
) -> dict[str, zipfile.ZipInfo]:
    """The files in the central directory of a zip file of ``size`` bytes, by name.

    Raises:
        ImageError: it is missing or damaged.
    """
    try:
        with zipfile.ZipFile(_File(size, read_at)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise ImageError(
            f"{name}: has no intact central directory at its end, as every zip file has: {error}",
            code="image-cut-short",
            hint=DOWNLOAD_AGAIN,
        ) from error
    files: dict[str, zipfile.ZipInfo] = {}
    # In the order of a stream: of two with the same name the first counts.
    for entry in sorted(entries, key=lambda each: each.header_offset):
        if not entry.filename.endswith("/"):
            files.setdefault(entry.filename, entry)
    return files


class _File(io.RawIOBase):
    """A file for ``zipfile`` over ``read_at``."""

    def __init__(self, size: int, read_at: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size = size
        self._read_at = read_at
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
            # As a file does: zipfile looks for records that a short file cannot contain.
            raise OSError(errno.EINVAL, "a place before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        if wanted > _MAX_DIRECTORY:
            raise ValueError("it is too large")
        data = self._read_at(self._position, wanted)
        self._position += len(data)
        return data


_MAX_PASSED = GIB  # bytes decoded of a member that is not the image
_MAX_END = MIB  # bytes kept of the end: the directory, and its end record with its comment

_HINT = "Download the file first, or pipe the unpacked image: unzip -p FILE | balenaflash ... -"


def find_streamed(origin: Origin, wanted: str | None, warn: Callable[[str], None]) -> Compressed:
    """The image in a zip file that is read from its start.

    Small members that are the image only if no other is one are kept until the end. Unless
    ``wanted`` names the image, ``warn`` is called at the end if another member may be it.

    Raises:
        ImageError: there is no image, or its end cannot be recognised.
    """
    source = Input(origin)
    passed: dict[str, LocalHeader] = {}
    content = b""
    while (header := read_header(source)) is not None:
        standing = _standing_of(header.name)
        if _is_image(header.name, standing, wanted):
            _require_end(source.name, header)
            pieces = member_pieces(source, header)
            return _streamed(header, _to_end(source, header, pieces, None if wanted else warn))
        if standing is _Standing.PERHAPS and wanted is None and _can_be_decoded(source, header):
            pieces = member_pieces(source, header)
            head = _read_head(pieces)
            if len(head) > _LARGEST_OTHER:
                return _streamed(header, _to_end(source, header, chain([head], pieces), warn))
            # The last one is enough: of two neither is the image.
            content = content if header.name in passed else head
        else:
            _pass_over(source, header)
        passed.setdefault(header.name, header)
    _read_to_end(source, 0)
    files = {name: 0 for name in passed if not name.endswith("/")}
    header = passed[_choose_member(origin.name, files, wanted)]
    usable_method(origin.name, header)
    return _streamed(header, (piece for piece in [content]))


def _streamed(header: LocalHeader, pieces: Pieces) -> Compressed:
    decoder = PiecesDecoder(pieces)
    size = None if header.sizes is None else header.sizes.content
    return Compressed(Container.ZIP, lambda _at: decoder, size, header.name)


def _to_end(
    source: Input,
    header: LocalHeader,
    pieces: Iterable[bytes | memoryview],
    warn: Callable[[str], None] | None,
) -> Pieces:
    """The ``pieces`` of the image; after the last one the rest of the zip file is read.

    ``warn`` is called if another member may be the image.
    """
    done = 0
    for piece in pieces:
        done += len(piece)
        yield piece
    tail = _read_to_end(source, done)
    if warn is not None:
        _warn_of_others(source, tail, header.name, warn)


def _warn_of_others(source: Input, tail: bytes, used: str, warn: Callable[[str], None]) -> None:
    """Warn if, by its directory, the zip file would be refused when read as a file."""
    start = source.position - len(tail)

    def read_at(offset: int, length: int) -> bytes:
        return tail[offset - start : offset - start + length] if offset >= start else b""

    try:
        entries = _read_directory(source.name, source.position, read_at)
    except ImageError:
        return  # it is longer than the kept end
    files = {name: entry.file_size for name, entry in entries.items()}
    try:
        _choose_member(source.name, files, None)
    except ImageError as error:
        (problem,) = error.problems
        text = f"{problem.message}; {used!r}, the first, was used. {problem.hint}"
        warn(CodedText(text, code=problem.code))


def _is_image(member: str, standing: _Standing, wanted: str | None) -> bool:
    if wanted is None:
        return standing is _Standing.IMAGE
    return not member.endswith("/") and _is_called(member, wanted)


def _require_end(zip_name: str, header: LocalHeader) -> None:
    """Refuse a member whose end cannot be recognised."""
    if header.sizes is None and not marks_its_end(header):
        raise unsupported(zip_name, f"the length of {header.name!r} in it is unknown", _HINT)


def _can_be_decoded(source: Input, header: LocalHeader) -> bool:
    """True if a member that the user has not named can be decoded here."""
    try:
        usable_method(source.name, header)
    except ImageError:
        return False
    return header.sizes is not None or marks_its_end(header)


def _pass_over(source: Input, header: LocalHeader) -> None:
    """Read to the end of a member that is not the image."""
    if header.sizes is not None:
        left = header.sizes.stored
        while left and (data := source.read(min(left, CHUNK_SIZE))):
            left -= len(data)
        return
    _require_end(source.name, header)
    done = 0
    for piece in member_pieces(source, header):
        done += len(piece)
        if done > _MAX_PASSED:
            fact = (
                f"{header.name!r} in it is not the image, but unpacks to more than "
                f"{format_size(_MAX_PASSED)}"
            )
            raise unsupported(source.name, fact, _HINT)


def _read_head(pieces: Pieces) -> bytes:
    """All pieces, or so many that they are more than a small member."""
    content = bytearray()
    while len(content) <= _LARGEST_OTHER and (piece := next(pieces, b"")):
        content += piece
    return bytes(content)


def _read_to_end(source: Input, done: int) -> bytes:
    """Read the rest of a zip file, and return the end of it.

    Raises:
        ImageError: it does not end with an end record, as a complete zip file does.
    """
    tail = b""
    while data := source.read():
        tail = (tail + data)[-_MAX_END:]
    end = tail.rfind(END_MAGIC)
    comment = int.from_bytes(tail[end + 20 : end + 22], "little")
    if end < 0 or len(tail) < end + 22 + comment:
        raise cut_short(source.name, Container.ZIP, source.position, done)
    return tail
