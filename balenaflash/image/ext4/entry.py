"""Files and directories of an ext4 filesystem as its readers see them."""

import stat
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from balenaflash.image.ext4.inode import Inode


class EntryKind(StrEnum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"
    """A device, a pipe or a socket."""


@dataclass(frozen=True, slots=True)
class Ext4Entry:
    """A name in an ext4 filesystem and what it stands for."""

    path: str
    """Absolute in the filesystem, without symbolic links before the last name; bytes that are
    not UTF-8 as ``os.fsdecode`` gives them."""

    kind: EntryKind
    size: int
    """Bytes of content: of a link those of its target, of a directory those of its blocks."""

    mode: int
    """Type and permissions, as ``st_mode`` of stat(2)."""

    modified: datetime
    """When the content last changed, in UTC."""

    inode: int
    """Number of the inode; the same for two names of one file."""

    @property
    def name(self) -> str:
        """The last part of the path; empty for the root."""
        return self.path.rpartition("/")[2]


def describe(path: str, inode: Inode) -> Ext4Entry:
    """The entry at ``path`` for ``inode``."""
    return Ext4Entry(
        path, kind_of(inode), inode.size, inode.mode, inode.modified, inode=inode.number
    )


def kind_of(inode: Inode) -> EntryKind:
    """The kind of ``inode`` by its mode."""
    kinds = {
        stat.S_IFREG: EntryKind.FILE,
        stat.S_IFDIR: EntryKind.DIRECTORY,
        stat.S_IFLNK: EntryKind.SYMLINK,
    }
    return kinds.get(stat.S_IFMT(inode.mode), EntryKind.OTHER)
