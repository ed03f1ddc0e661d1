"""The picture that balenaOS shows while it starts, and its check as a PNG image."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from balenaflash.edits.files import FileChange, make_directories, put_file
from balenaflash.edits.paths import parent_of
from balenaflash.errors import EditError
from balenaflash.formats.fat.pyfatfs import FatVolume
from balenaflash.units import MIB, format_size

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


SPLASH_PATH = "/splash/balena-logo.png"
"""Where Plymouth looks for it, and what a host OS update leaves alone."""

OLD_SPLASH_PATH = "/splash/resin-logo.png"
"""Where older releases look for it; an update moves a changed one to the new place."""

_LARGE_FILE = MIB
"""balena's own has 13 KiB; a host OS update needs room for twice the largest boot file."""

_LARGE_SIDE = 4096
"""Pixels; a 4K screen is 3840 wide, and Plymouth scales the picture down to the screen."""


@dataclass(frozen=True, slots=True)
class SetSplash:
    """Replace the picture shown while the board starts; it is scaled to the screen."""

    name: str
    """What messages call the picture."""

    content: bytes = field(repr=False)

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``.

        Raises:
            EditError: it is not a PNG image.
        """
        image = read_png(self.content, self.name)
        path = splash_path(volume)
        made = make_directories(volume, parent_of(path))
        change = put_file(volume, path, self.content)
        return (*made, change.with_warnings(self._oddities(image)))

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"show {self.name} at the start"

    def _oddities(self, image: PngImage) -> Iterator[str]:
        size = len(self.content)
        if size > _LARGE_FILE:
            yield f"{self.name} has {format_size(size)}, a lot for the boot partition."
        if max(image.width, image.height) > _LARGE_SIDE:
            yield (
                f"{self.name} has {image.width} x {image.height} pixels, "
                "more than a board's screen can show."
            )


def splash_path(volume: FatVolume) -> str:
    """Where the picture of this image lies: the older name where only that is there."""
    if volume.find(SPLASH_PATH) is None and volume.find(OLD_SPLASH_PATH) is not None:
        return OLD_SPLASH_PATH
    return SPLASH_PATH
