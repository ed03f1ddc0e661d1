"""One member of a zip file: its header, its method, its bytes decoded and checked."""

import bz2
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from balenaflash.errors import ImageError
from balenaflash.source.container.decoder import Container, Input, corrupt, cut_short
from balenaflash.source.container.streams import (
    DEFLATE64_FAILURES,
    DEFLATE_FAILURES,
    Engine,
    crc32,
    new_deflate64_engine,
    new_deflate_engine,
)
from balenaflash.source.container.xz import MEMORY_LIMIT, new_xz_engine
from balenaflash.source.container.zstd import ZSTD_FAILURES, new_zstd_engine
from balenaflash.units import KIB


@dataclass(frozen=True, slots=True)
class Method:
    """A way to compress a member."""

    new_engine: Callable[[], Engine]

    failures: tuple[type[Exception], ...]
    """What an engine raises for damaged data."""


class _StoredEngine:
    """Passes on what it is given; it has no end of its own."""

    eof = False
    unused_data = b""

    def __init__(self) -> None:
        self._rest = memoryview(b"")

    @property
    def needs_input(self) -> bool:
        return not self._rest

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        if not self._rest and len(data) <= max_length:
            return data
        rest = memoryview(bytes(self._rest) + data) if data else self._rest
        self._rest = rest[max_length:]
        return bytes(rest[:max_length])


class _LzmaEngine:
    """LZMA with zip's own header (APPNOTE 6.3.10, section 5.8.8), turned into that of .lzma."""

    _VERSION_SIZE = 4  # bytes: the version of the SDK, and the size of the properties
    _PROPERTIES_SIZE = 5

    def __init__(self, size: int | None = None) -> None:
        """``size`` is that of the content, where its end is not marked."""
        self._engine = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY_LIMIT)
        self._head: bytes | None = b""
        # Unknown, as .lzma has it.
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
            size = self._VERSION_SIZE + self._PROPERTIES_SIZE
            if len(self._head) < size:
                return b""
            if int.from_bytes(self._head[2:4], "little") != self._PROPERTIES_SIZE:
                raise lzma.LZMAError("properties of an unknown size")
            data = self._head[4:size] + self._size + self._head[size:]
            self._head = None
        return self._engine.decompress(data, max_length)


STORED = 0
"""The method of a member that is not compressed."""

DEFLATE64 = 9
LZMA = 14

METHODS = {
    STORED: Method(_StoredEngine, ()),
    8: Method(new_deflate_engine, DEFLATE_FAILURES),
    DEFLATE64: Method(new_deflate64_engine, DEFLATE64_FAILURES),
    12: Method(bz2.BZ2Decompressor, (OSError,)),
    LZMA: Method(_LzmaEngine, (lzma.LZMAError,)),
    93: Method(new_zstd_engine, ZSTD_FAILURES),
    95: Method(new_xz_engine, (lzma.LZMAError,)),
}
"""APPNOTE 6.3.10, section 4.4.5, to what decodes it."""


def lzma_of_size(size: int) -> Method:
    """What decodes LZMA without a mark at its end, of ``size`` bytes when decoded.

    Without the size a decoder goes on into the last bytes and makes up some more.
    """
    return Method(partial(_LzmaEngine, size), (lzma.LZMAError,))


_PIECE_SIZE = 256 * KIB
"""Bytes decoded in one call at most: they are copied while they are in the processor's cache."""


@dataclass(frozen=True, slots=True)
class MemberSizes:
    """What a member is to be checked by."""

    stored: int
    """Bytes in the zip file."""

    content: int
    """Bytes when decoded."""

    crc: int
    """CRC-32 of the content."""


class MemberDecoder:
    """A member, decoded from its start on, where ``source`` stands.

    Without ``sizes`` the member ends where its method says; what was read behind it is then put
    back, and ``seen`` is what the member turned out to be.
    """

    def __init__(self, source: Input, method: Method, sizes: MemberSizes | None) -> None:
        self._input = source
        self._method = method
        self._engine: Engine | None = method.new_engine()
        self._sizes = sizes
        self._start = source.position
        self._done = 0
        self._crc = 0

    @property
    def seen(self) -> MemberSizes:
        """Sizes and CRC-32 of what was decoded so far."""
        return MemberSizes(self._input.position - self._start, self._done, self._crc)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; see ``Decoder``."""
        filled = 0
        while filled < len(buffer) and self._engine is not None:
            if self._engine.eof or self._is_complete(self._engine):
                self._finish(self._engine)
                break
            piece = self._decode(self._engine, min(_PIECE_SIZE, len(buffer) - filled))
            end = filled + len(piece)
            buffer[filled:end] = piece
            self._crc = crc32(piece, self._crc)
            self._done += len(piece)
            filled = end
            if self._sizes is not None and self._done > self._sizes.content:
                raise self._corrupt(f"unpacks to more than the {self._sizes.content} bytes it says")
        return filled

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine = None

    def _is_complete(self, engine: Engine) -> bool:
        """Whether a member whose method marks no end is decoded whole."""
        return self._left() == 0 and engine.needs_input

    def _left(self) -> int | None:
        """Bytes of the member still to be read, as far as that is known."""
        if self._sizes is None:
            return None
        return self._sizes.stored - (self._input.position - self._start)

    def _decode(self, engine: Engine, length: int) -> bytes:
        data = b""
        if engine.needs_input:
            left = self._left()
            wanted = Input.CHUNK_SIZE if left is None else min(left, Input.CHUNK_SIZE)
            data = self._input.read(wanted)
            if not data:
                raise cut_short(self._input.name, Container.ZIP, self._input.position, self._done)
        try:
            return engine.decompress(data, length)
        except self._method.failures as error:
            raise self._corrupt(f"cannot be decoded: {error}") from error

    def _finish(self, engine: Engine) -> None:
        self._engine = None
        self._input.put_back(engine.unused_data)
        if self._sizes is not None and self.seen != self._sizes:
            raise self._corrupt("does not have the size and CRC-32 that it should")

    def _corrupt(self, why: str) -> ImageError:
        return corrupt(self._input.name, Container.ZIP, self._input.position, self._done, why)


LOCAL_MAGIC = b"PK\x03\x04"

FIXED_SIZE = 30
"""Bytes in front of the name."""

_FIELDS = struct.Struct("<4s H H H 4s III HH")
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # section 4.4.4: bits 0, 6 and 13
_LZMA_MARKED = 0x0002  # bit 1, of LZMA: its end is marked
_DESCRIPTOR = 0x0008  # bit 3: sizes and CRC follow the data
_UTF8 = 0x0800  # bit 11
_IN_ZIP64 = 0xFFFFFFFF  # section 4.4.8: the size is in the extra field
_ZIP64_ID = 1  # section 4.5.3
_ZIP64_SIZES = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class LocalHeader:
    """What stands in front of a member's data."""

    name: str
    flags: int
    method: int
    sizes: MemberSizes | None
    """``None`` where they follow the data."""

    length: int
    """Bytes of the header itself: the data comes right behind."""


def lengths_behind(fixed: bytes) -> int:
    """Bytes of name and extra field that follow the ``fixed`` part of a header."""
    return sum(struct.unpack("<HH", fixed[26:30]))


def parse_header(zip_name: str, data: bytes, place: int) -> LocalHeader:
    """The header in ``data``, which stands at byte ``place`` of the zip file.

    Raises:
        ImageError: it is none, or ends early.
    """
    if data[:4] != LOCAL_MAGIC[: len(data[:4])]:
        raise corrupt(zip_name, Container.ZIP, place, 0, "is not the header of a member")
    if len(data) < FIXED_SIZE or len(data) < FIXED_SIZE + lengths_behind(data[:FIXED_SIZE]):
        raise cut_short(zip_name, Container.ZIP, place + len(data), 0)
    fields = _FIELDS.unpack_from(data)
    _, _, flags, method, _, crc, stored, content, name_length, extra_length = fields
    extra_start = FIXED_SIZE + name_length
    zip64 = _zip64_sizes(data[extra_start : extra_start + extra_length])
    if zip64 is not None and content == _IN_ZIP64:
        content, stored = zip64
    return LocalHeader(
        name=_decode_name(data[FIXED_SIZE:extra_start], flags),
        flags=flags,
        method=method,
        sizes=None if flags & _DESCRIPTOR else MemberSizes(stored, content, crc),
        length=extra_start + extra_length,
    )


def usable_method(zip_name: str, header: LocalHeader) -> Method:
    """What decodes a member.

    Raises:
        ImageError: nothing that is here does.
    """
    if header.flags & _ENCRYPTED:
        raise ImageError(
            f"{zip_name}: {header.name!r} in it is encrypted",
            code="image-unsupported",
            hint="Unpack it first, with its password: 7z x",
        )
    if header.method not in METHODS:
        raise ImageError(
            f"{zip_name}: {header.name!r} in it is compressed by a method (number "
            f"{header.method}) that is not known",
            code="image-unsupported",
            hint="Unpack it first: 7z x",
        )
    if header.method == LZMA and header.sizes is not None and not marks_its_end(header):
        return lzma_of_size(header.sizes.content)
    return METHODS[header.method]


def marks_its_end(header: LocalHeader) -> bool:
    """Whether the data of a member tells where it ends."""
    if header.method == LZMA:
        return bool(header.flags & _LZMA_MARKED)
    # Deflate64 does mark it, but what decodes it does not say how much it has read.
    return header.method not in {STORED, DEFLATE64}


def _decode_name(name: bytes, flags: int) -> str:
    """As ``zipfile`` gives it: a NUL ends it."""
    return name.decode("utf-8" if flags & _UTF8 else "cp437", "replace").partition("\0")[0]


def _zip64_sizes(extra: bytes) -> tuple[int, int] | None:
    """Content and stored size of a zip64 extra field, if there is one with both (section 4.5.3)."""
    offset = 0
    while offset + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, offset)
        if kind == _ZIP64_ID and length >= _ZIP64_SIZES.size and offset + 20 <= len(extra):
            content, stored = _ZIP64_SIZES.unpack_from(extra, offset + 4)
            return content, stored
        offset += 4 + length
    return None
