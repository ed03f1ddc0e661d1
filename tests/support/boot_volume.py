"""The boot partition of a test image: edited in memory, written to the file, seen by mtools."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builders import BuiltImage, run

from balenaflash.formats.fat.volume import FatVolume
from balenaflash.source.base import open_source


@contextmanager
def edited(built: BuiltImage) -> Iterator[FatVolume]:
    """The boot partition of an image, to change; what changed is written at the end."""
    with open_source(built.path) as source:
        volume = FatVolume.open(source, built.boot_extent)
        yield volume
        patches = volume.changes()
    with built.path.open("r+b") as file:
        for patch in patches:
            file.seek(patch.offset)
            file.write(patch.data)


def extract(built: BuiltImage, folder: Path) -> Path:
    """All files of the boot partition below a new ``folder``, by mcopy."""
    folder.mkdir()
    place = f"{built.path}@@{built.boot_extent.start}"
    run("mcopy", "-i", place, "-s", "-n", "-m", "::*", folder)
    return folder


def file_tree(folder: Path) -> dict[str, bytes]:
    """Absolute path, as in the boot partition, to content of each file below ``folder``."""
    return {
        f"/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
