"""The header in front of each member of a zip file (APPNOTE 6.3.10, section 4.3.7)."""

import struct
from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.image.container.decoder import corrupt, cut_short
from balenaflash.image.container.kinds import Container
from balenaflash.image.container.zip_member import MemberSizes
from balenaflash.image.container.zip_methods import (
    DEFLATE64,
    LZMA,
    METHODS,
    STORED,
    Method,
    lzma_of_size,
)

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
