"""The picture that balenaOS shows while it starts, a PNG image."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from balenaflash.edits.files import FileChange, make_directories, parent_of, put_file
from balenaflash.errors import EditError
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import MIB, format_size

SPLASH_PATH = "/splash/balena-logo.png"
"""The picture for Plymouth; a host OS update does not replace it."""

OLD_SPLASH_PATH = "/splash/resin-logo.png"
"""The picture of older releases; an update moves a changed one to the new path."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"  # PNG specification, section 5.2
_HEADER = struct.Struct(">I4sII")  # length, type, width and height; sections 5.3 and 11.2.1
_HEADER_LENGTH = 13  # bytes of IHDR
_SIDE_MAX = 0x7FFFFFFF  # pixels, section 11.2.1

_LARGE_FILE = MIB  # balena's own has 13 KiB; an update needs room for twice the largest boot file
_LARGE_SIDE = 4096  # pixels; Plymouth scales the picture down to the screen, which 4K is 3840 wide


@dataclass(frozen=True, slots=True)
class SetSplash:
    """Replace the picture shown while the board starts; balenaOS scales it to the screen."""

    name: str
    """Name of the picture in messages."""

    content: bytes = field(repr=False)

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        width, height = read_png_size(self.content, self.name)
        path = splash_path(volume)
        made = make_directories(volume, parent_of(path))
        change = put_file(volume, path, self.content)
        return (*made, change.with_warnings(self._warnings(width, height)))

    def describe(self) -> str:
        return f"show {self.name} at the start"

    def _warnings(self, width: int, height: int) -> Iterator[str]:
        size = len(self.content)
        if size > _LARGE_FILE:
            yield f"{self.name} has {format_size(size)}, a lot for the boot partition."
        if max(width, height) > _LARGE_SIDE:
            yield f"{self.name} has {width} x {height} pixels, more than a board's screen can show."


def read_png_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of the PNG image in ``data``; ``name`` is its name in messages.

    Only the signature and the start of the header are checked.

    Raises:
        EditError: it is not a PNG image.
    """
    if not data.startswith(_SIGNATURE):
        raise _invalid(name, "is not a PNG image", "balenaOS shows PNG images only.")
    header = data[len(_SIGNATURE) :][: _HEADER.size]
    if len(header) < _HEADER.size:
        raise _invalid(name, f"ends at byte {len(data)}, inside the PNG header")
    length, kind, width, height = _HEADER.unpack(header)
    if (length, kind) != (_HEADER_LENGTH, b"IHDR"):
        raise _invalid(name, "does not begin with a PNG header")
    if not (0 < width <= _SIDE_MAX and 0 < height <= _SIDE_MAX):
        raise _invalid(name, f"cannot be {width} x {height} pixels")
    return width, height


def splash_path(volume: FatVolume) -> str:
    """The path of the picture; the older path if only that file exists."""
    if volume.find(SPLASH_PATH) is None and volume.find(OLD_SPLASH_PATH) is not None:
        return OLD_SPLASH_PATH
    return SPLASH_PATH


def _invalid(name: str, fact: str, hint: str | None = None) -> EditError:
    return EditError(f"{name}: {fact}", code="png-invalid", hint=hint)
