"""Small FAT volumes made by ``mkfs.vfat``, edited in memory, judged by other tools."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builders import ENVIRONMENT, run, write_tree
from fakes import MemorySource

from balenaflash.formats.fat.volume import FatVolume
from balenaflash.units import Extent


@dataclass(frozen=True, slots=True)
class MadeVolume:
    """A volume open for edits, which never reach the bytes it was made of."""

    volume: FatVolume
    content: bytes
    folder: Path

    def edited(self) -> bytes:
        """All bytes of the volume with the edits made so far."""
        content = bytearray(self.content)
        for patch in self.volume.changes():
            content[patch.offset : patch.extent.end] = patch.data
        return bytes(content)

    def files(self) -> dict[str, bytes]:
        """What mtools finds in the edited volume, which ``fsck.vfat`` must find sound."""
        path = self.folder / "edited.img"
        path.write_bytes(self.edited())
        run("fsck.vfat", "-n", path)
        return read_tree(path, self.folder / "found")


def make_volume(
    folder: Path, files: Mapping[str, bytes], *, label: str = "resin-boot", size: int = 1024
) -> MadeVolume:
    """A volume of ``size`` KiB that holds ``files``, by absolute path."""
    path, tree = folder / "volume.img", folder / "tree"
    run("mkfs.vfat", "-n", label, "-S", "512", "-C", path, str(size))
    tree.mkdir()
    write_tree(tree, files)
    if files:
        run("mcopy", "-i", path, "-sm", *sorted(tree.iterdir()), "::")
    return open_volume(path.read_bytes(), folder)


def open_volume(content: bytes, folder: Path) -> MadeVolume:
    """The volume whose bytes are ``content``."""
    volume = FatVolume.open(MemorySource(content), Extent(0, len(content)))
    return MadeVolume(volume, content, folder)


def read_tree(volume: Path | str, folder: Path) -> dict[str, bytes]:
    """Every file in ``volume``, as mtools takes it, by absolute path; ``folder`` is made."""
    folder.mkdir()
    if run("mdir", "-i", volume, "-b", "-a", "::").strip():
        command = ["mcopy", "-i", volume, "-s", "-n", "::*", folder]
        # In the C locale, mtools writes "ss" for the German sharp s.
        subprocess.run(command, env=ENVIRONMENT | {"LC_ALL": "C.UTF-8"}, check=True)
    return read_folder(folder)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` by its path in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {f"/{path.relative_to(folder)}": path.read_bytes() for path in found}
