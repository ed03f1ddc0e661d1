"""How full the filesystem of a partition is."""

from dataclasses import dataclass

from balenaflash.errors import ImageError
from balenaflash.extent import Extent
from balenaflash.image.ext4.volume import Ext4Volume
from balenaflash.image.fat.volume import FatVolume
from balenaflash.image.filesystems import Filesystem
from balenaflash.image.source import Source

_EXT_TYPES = frozenset({"ext2", "ext3", "ext4"})


@dataclass(frozen=True, slots=True)
class Fill:
    """What a filesystem has room for, and how much of that is free."""

    total_bytes: int
    """All clusters of FAT, without its tables; all blocks of ext4, its metadata included."""

    free_bytes: int

    @property
    def used_bytes(self) -> int:
        """What is not free."""
        return self.total_bytes - self.free_bytes


@dataclass(frozen=True, slots=True)
class FillReading:
    """How full a filesystem is, and what is doubtful of it."""

    fill: Fill | None
    """``None`` of a filesystem that is damaged, or of a type that is not understood."""

    warnings: tuple[str, ...] = ()


def read_fill(source: Source, extent: Extent, filesystem: Filesystem) -> FillReading:
    """How full the ``filesystem`` in ``extent`` is by its own count.

    Little is read: the table of FAT, the superblock of ext4.
    """
    try:
        if filesystem.type == "vfat":
            volume = FatVolume.open(source, extent)
            return FillReading(_checked(volume.total_bytes, volume.free_bytes))
        if filesystem.type in _EXT_TYPES:
            ext4 = Ext4Volume.open(source, extent)
            warnings = tuple(problem.message for problem in ext4.problems)
            return FillReading(_checked(ext4.total_bytes, ext4.free_bytes), warnings)
    except ImageError as error:
        return FillReading(None, (str(error),))
    return FillReading(None)


def _checked(total: int, free: int) -> Fill | None:
    """A superblock may claim anything."""
    return Fill(total, free) if 0 <= free <= total and total else None
