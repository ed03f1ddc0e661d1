"""The picture that balenaOS shows while it starts."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from balenaflash.boot.files import FileChange, make_directories, put_file
from balenaflash.boot.paths import parent_of
from balenaflash.boot.png import PngImage, read_png
from balenaflash.extent import MIB, format_size
from balenaflash.image.fat.volume import FatVolume

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
