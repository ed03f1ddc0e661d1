"""Whether bytes are a PNG image (PNG specification, third edition, W3C 2025)."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.errors import EditError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"  # section 5.2
_HEADER = struct.Struct(">IIBBBBB")  # section 11.2.1, IHDR
_LENGTH_AND_TYPE = struct.Struct(">I4s")  # section 5.3
_CRC = struct.Struct(">I")
_SIDE_MAX = 0x7FFFFFFF  # section 11.2.1
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
"""Color type to the bit depths it can have, table 12."""

_PALETTE = 3  # color type that needs PLTE


@dataclass(frozen=True, slots=True)
class PngImage:
    """What the header of a PNG tells."""

    width: int
    """Pixels, as `height`."""

    height: int


def read_png(data: bytes, name: str) -> PngImage:
    """The image in ``data``; ``name`` is what messages call it.

    Every chunk and its checksum is looked at; the pixels are not decompressed.

    Raises:
        EditError: it is not a PNG, or a damaged one.
    """
    if not data.startswith(_SIGNATURE):
        raise _invalid(name, "is not a PNG image", "balenaOS shows PNG images only.")
    chunks = list(_chunks(data, name))
    types = [kind for kind, _ in chunks]
    if types[0] != b"IHDR" or types.count(b"IHDR") != 1:
        raise _invalid(name, "does not begin with one PNG header")
    image, color_type = _read_header(chunks[0][1], name)
    if b"IDAT" not in types:
        raise _invalid(name, "has no pixels")
    if color_type == _PALETTE and b"PLTE" not in types[: types.index(b"IDAT")]:
        raise _invalid(name, "has no palette, and its pixels need one")
    return image


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk, the last being IEND at the very end."""
    position = len(_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        start = position + _LENGTH_AND_TYPE.size
        if start > len(data):
            raise _invalid(name, f"ends at byte {len(data)}, within the image")
        length, kind = _LENGTH_AND_TYPE.unpack_from(data, position)
        end = start + length
        if end + _CRC.size > len(data):
            raise _invalid(name, f"ends at byte {len(data)}, within the image")
        content = data[start:end]
        if _CRC.unpack_from(data, end)[0] != zlib.crc32(content, zlib.crc32(kind)):
            raise _invalid(name, f"is damaged: the checksum at byte {end} is wrong")
        yield kind, content
        position = end + _CRC.size
    if position != len(data):
        raise _invalid(name, f"has {len(data) - position} bytes after the end of the image")


def _read_header(content: bytes, name: str) -> tuple[PngImage, int]:
    """The image, and its color type."""
    if len(content) != _HEADER.size:
        raise _invalid(name, "has a PNG header of the wrong length")
    width, height, depth, color_type, compression, filtering, interlace = _HEADER.unpack(content)
    if not (0 < width <= _SIDE_MAX and 0 < height <= _SIDE_MAX):
        raise _invalid(name, f"cannot be {width} x {height} pixels")
    if depth not in _DEPTHS.get(color_type, ()) or compression or filtering or interlace > 1:
        raise _invalid(name, "has a PNG header with values that are not defined")
    return PngImage(width, height), color_type


def _invalid(name: str, fact: str, hint: str | None = None) -> EditError:
    return EditError(f"{name}: {fact}", code="png-invalid", hint=hint)
