"""One member of a zip file: its header, its method, its bytes decoded and checked.

Sections are those of APPNOTE 6.3.10.
"""

import lzma
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from balenaflash.errors import ImageError
from balenaflash.source.container.bzip2 import BZIP2
from balenaflash.source.container.decoder import (
    CHUNK_SIZE,
    Container,
    Input,
    Pieces,
    corrupt,
    cut_short,
    shell_name,
    unsupported,
)
from balenaflash.source.container.streams import (
    DEFLATE_FAILURES,
    Engine,
    crc32,
    engine_pieces,
    new_deflate_engine,
)
from balenaflash.source.container.xz import MEMORY_LIMIT, XZ
from balenaflash.source.container.zstd import ZSTD

if TYPE_CHECKING:
    from inflate64 import Inflater


class _StoredEngine:
    """Returns its input; the end is known from the member's size."""

    eof = False
    needs_input = True
    unused_data = b""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        del max_length
        return data


_FEED = 128
"""Bytes decoded in one call: the library does not limit the output, which may be 32 MiB."""


class _Deflate64Engine:
    """Decodes one deflate64 stream."""

    def __init__(self, inflater: "Inflater") -> None:
        self._inflater = inflater
        self._input = memoryview(b"")
        self._output = memoryview(b"")

    @property
    def eof(self) -> bool:
        return bool(self._inflater.eof) and not self._output

    @property
    def needs_input(self) -> bool:
        return not self._input and not self._output and not self.eof

    @property
    def unused_data(self) -> bytes:
        # Without the bytes that the library itself has read beyond the end.
        return bytes(self._input)

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if data:
            self._input = memoryview(bytes(self._input) + data)
        while self._input and not self._output and not self._inflater.eof:
            feed, self._input = self._input[:_FEED], self._input[_FEED:]
            self._output = memoryview(self._inflater.inflate(bytes(feed)))
        length = len(self._output) if max_length < 0 else max_length
        piece, self._output = self._output[:length], self._output[length:]
        return bytes(piece)


def _new_deflate64_engine() -> Engine:
    """An engine for deflate64 as in zip files.

    Raises:
        ImageError: the library is not installed.
    """
    try:
        from inflate64 import Inflater  # noqa: PLC0415 - it need not be installed
    except ImportError as error:
        raise ImageError(
            "deflate64 cannot be decoded: the Python package inflate64 is not installed",
            code="image-unsupported",
            hint="Install it: pip install 'balenaflash[deflate64]'; or unpack the image: unzip",
        ) from error
    return _Deflate64Engine(Inflater())


_LZMA_VERSION = 4  # bytes in front of the properties: version of the SDK, size of the properties
_LZMA_PROPERTIES = 5  # bytes


class _LzmaEngine:
    """LZMA with zip's own header (section 5.8.8), which is turned into that of .lzma.

    ``size`` is that of the content if its end is not marked. Without it a decoder would go on into
    the last bytes and produce extra ones.
    """

    def __init__(self, size: int | None = None) -> None:
        self._engine = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY_LIMIT)
        self._head: bytes | None = b""
        # All bits set mean "unknown" in .lzma.
        self._size = b"\xff" * 8 if size is None else size.to_bytes(8, "little")

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def needs_input(self) -> bool:
        return self._engine.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if self._head is not None:
            self._head += data
            size = _LZMA_VERSION + _LZMA_PROPERTIES
            if len(self._head) < size:
                return b""
            if int.from_bytes(self._head[2:_LZMA_VERSION], "little") != _LZMA_PROPERTIES:
                raise lzma.LZMAError("properties of an unknown size")
            data = self._head[_LZMA_VERSION:size] + self._size + self._head[size:]
            self._head = None
        return self._engine.decompress(data, max_length)


@dataclass(frozen=True, slots=True)
class Method:
    """A compression method of members."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """Exceptions of an engine for damaged data."""


STORED = 0
"""The method of a member that is not compressed."""

_DEFLATE64 = 9
_LZMA = 14

_METHODS = {
    STORED: Method(_StoredEngine, ()),
    8: Method(new_deflate_engine, DEFLATE_FAILURES),
    _DEFLATE64: Method(_new_deflate64_engine, (ValueError, RuntimeError)),
    12: Method(BZIP2.new_engine, BZIP2.failures),
    _LZMA: Method(_LzmaEngine, XZ.failures),
    93: Method(ZSTD.new_engine, ZSTD.failures),
    95: Method(XZ.new_engine, XZ.failures),
}
"""Number of a method (section 4.4.5) to its decoder."""


@dataclass(frozen=True, slots=True)
class MemberSizes:
    """Sizes and checksum of a member."""

    stored: int
    """Bytes in the zip file."""

    content: int
    """Bytes when decoded."""

    crc: int
    """CRC-32 of the content."""


LOCAL_MAGIC = b"PK\x03\x04"  # section 4.3.7
END_MAGIC = b"PK\x05\x06"  # section 4.3.16
_AFTER_MEMBERS = frozenset({END_MAGIC, b"PK\x01\x02", b"PK\x06\x06", b"PK\x06\x08"})
"""The directory (section 4.3.12), its end (4.3.16, 4.3.14), extra data (4.3.11)."""

_FIELDS = struct.Struct("<4s H H H 4s III HH")
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # section 4.4.4: bits 0, 6 and 13
_LZMA_MARKED = 0x0002  # bit 1, for LZMA: its end is marked
_DESCRIPTOR = 0x0008  # bit 3: sizes and CRC follow the data
_UTF8 = 0x0800  # bit 11
_IN_ZIP64 = 0xFFFFFFFF  # section 4.4.8: the size is in the extra field
_ZIP64_ID = 1  # section 4.5.3
_ZIP64_SIZES = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class LocalHeader:
    """The header before a member's data."""

    name: str
    flags: int
    method: int
    sizes: MemberSizes | None
    """``None`` if they follow the data."""


def read_header(source: Input) -> LocalHeader | None:
    """The header of the next member, up to its data; ``None`` at the directory.

    Raises:
        ImageError: something else follows, or the zip file ends.
    """
    place = source.position
    fixed = source.read(_FIELDS.size)
    magic = fixed[:4]
    if magic in _AFTER_MEMBERS:
        source.put_back(fixed)
        return None
    if not LOCAL_MAGIC.startswith(magic):
        raise corrupt(source.name, Container.ZIP, place, 0, "is not the header of a member")
    if len(fixed) < _FIELDS.size:
        raise cut_short(source.name, Container.ZIP, source.position, 0)
    fields = _FIELDS.unpack(fixed)
    _, _, flags, method, _, crc, stored, content, name_length, extra_length = fields
    name, extra = source.read(name_length), source.read(extra_length)
    if len(name) + len(extra) < name_length + extra_length:
        raise cut_short(source.name, Container.ZIP, source.position, 0)
    zip64 = _zip64_sizes(extra)
    if zip64 is not None and content == _IN_ZIP64:
        content, stored = zip64
    return LocalHeader(
        # As ``zipfile`` does: a NUL ends it.
        name.decode("utf-8" if flags & _UTF8 else "cp437", "replace").partition("\0")[0],
        flags,
        method,
        None if flags & _DESCRIPTOR else MemberSizes(stored, content, crc),
    )


def _zip64_sizes(extra: bytes) -> tuple[int, int] | None:
    """Content and stored size of a zip64 extra field that has both (section 4.5.3)."""
    offset = 0
    while offset + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, offset)
        if kind == _ZIP64_ID and length >= _ZIP64_SIZES.size and offset + 20 <= len(extra):
            content, stored = _ZIP64_SIZES.unpack_from(extra, offset + 4)
            return content, stored
        offset += 4 + length
    return None


def usable_method(zip_name: str, header: LocalHeader) -> Method:
    """The method of a member.

    Raises:
        ImageError: the member cannot be decoded here.
    """
    hint = f"Unpack it first: 7z x {shell_name(zip_name)}"
    if header.flags & _ENCRYPTED:
        raise unsupported(zip_name, f"{header.name!r} in it is encrypted", hint)
    if header.method not in _METHODS:
        fact = f"{header.name!r} in it has an unknown compression method (number {header.method})"
        raise unsupported(zip_name, fact, hint)
    if header.method == _LZMA and header.sizes is not None and not marks_its_end(header):
        return Method(partial(_LzmaEngine, header.sizes.content), XZ.failures)
    return _METHODS[header.method]


def marks_its_end(header: LocalHeader) -> bool:
    """True if the end of a member can be recognised in its data."""
    if header.method == _LZMA:
        return bool(header.flags & _LZMA_MARKED)
    # Deflate64 does mark it, but its decoder does not report how much it has read.
    return header.method not in {STORED, _DEFLATE64}


def member_pieces(source: Input, header: LocalHeader) -> Pieces:
    """The content of the member whose data begins at the position of ``source``.

    Without sizes in its header the member ends where its method marks the end; its sizes and
    CRC-32 follow, and are read too.

    Raises:
        ImageError: as `usable_method`; later, the member is damaged, or the zip file ends early.
    """
    return _decode(source, usable_method(source.name, header), header.sizes)


def _decode(source: Input, method: Method, sizes: MemberSizes | None) -> Pieces:
    start = source.position
    content = crc = 0
    engine = method.new_engine()
    try:
        for piece in engine_pieces(engine, _stored(source, sizes)):
            content += len(piece)
            crc = crc32(piece, crc)
            if sizes is not None and content > sizes.content:
                why = f"is decoded to more than the {sizes.content} bytes in its header"
                raise corrupt(source.name, Container.ZIP, source.position, content, why)
            yield piece
    except method.failures as error:
        why = f"cannot be decoded: {error}"
        raise corrupt(source.name, Container.ZIP, source.position, content, why) from error
    is_whole = sizes is not None and source.position == start + sizes.stored
    if not engine.eof and not is_whole:
        raise cut_short(source.name, Container.ZIP, source.position, content)
    source.put_back(engine.unused_data)
    seen = MemberSizes(source.position - start, content, crc)
    if sizes is None:
        _check_descriptor(source, seen)
    elif seen != sizes:
        raise _differs(source, seen)


def _stored(source: Input, sizes: MemberSizes | None) -> Iterator[bytes]:
    """The bytes of a member, at most, as they are stored; ``source`` may end before."""
    if sizes is None:
        yield from iter(source.read, b"")
        return
    left = sizes.stored
    while left and (data := source.read(min(left, CHUNK_SIZE))):
        left -= len(data)
        yield data


_DESCRIPTOR_MAGIC = b"PK\x07\x08"  # section 4.3.9
_DESCRIPTOR_LAYOUTS = (struct.Struct("<IQQ"), struct.Struct("<III"))


def _check_descriptor(source: Input, seen: MemberSizes) -> None:
    """Compare a member with the CRC and sizes that follow it (section 4.3.9).

    Sizes have 8 bytes if the header has a zip64 field. Go and Java, which cannot know beforehand,
    never write such a field, and write 8 bytes for members larger than 4 GiB; others always write
    8. So both lengths are tried. The magic in front may be missing.
    """
    wanted = (seen.crc, seen.stored, seen.content)
    data = source.read(4 + _DESCRIPTOR_LAYOUTS[0].size)
    for start in (4, 0) if data[:4] == _DESCRIPTOR_MAGIC else (0,):
        for layout in _DESCRIPTOR_LAYOUTS:
            end = start + layout.size
            if len(data) >= end and layout.unpack_from(data, start) == wanted:
                source.put_back(data[end:])
                return
    if len(data) < 4 + _DESCRIPTOR_LAYOUTS[1].size:
        raise cut_short(source.name, Container.ZIP, source.position, seen.content)
    raise _differs(source, seen)


def _differs(source: Input, seen: MemberSizes) -> ImageError:
    why = "differs from the size or CRC-32 that is stored for it"
    return corrupt(source.name, Container.ZIP, source.position, seen.content, why)
