"""Private copies of test images, each image built once a session."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from builders import BuiltImage, Layout, build_image


class MakeImage(Protocol):
    """The fixture ``image``."""

    def __call__(self, layout: Layout, *, flasher: bool = False) -> BuiltImage:
        """An image of that layout which the test may change; gone when the test ends."""


class ImageStore:
    """Builds each image when it is first asked for, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[tuple[Layout, bool], BuiltImage] = {}
        self._copies = 0

    def copy(self, directory: Path, layout: Layout, *, flasher: bool) -> BuiltImage:
        """The image, copied into ``directory``; holes stay holes."""
        original = self._original(layout, flasher=flasher)
        self._copies += 1
        path = directory / f"{self._copies}-{original.path.name}"
        command = ["cp", "--sparse=always", "--reflink=auto", str(original.path), str(path)]
        subprocess.run(command, check=True)
        return replace(original, path=path)

    def _original(self, layout: Layout, *, flasher: bool) -> BuiltImage:
        key = (layout, flasher)
        if key not in self._built:
            path = self._directory / f"{layout}{'-flasher' if flasher else ''}.img"
            self._built[key] = build_image(path, layout, flasher=flasher)
        return self._built[key]
