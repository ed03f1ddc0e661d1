"""What an ext4 filesystem may use: the feature words of its superblock.

Values from the kernel's fs/ext4/ext4.h; names as ``mke2fs -O`` and ``dumpe2fs`` spell them.
"""

from enum import IntFlag


class Compatible(IntFlag):
    """Features that change nothing for whoever does not know them."""

    SPARSE_SUPER2 = 0x200


class Incompatible(IntFlag):
    """Features without which a filesystem must not even be read."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    NEEDS_RECOVERY = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    METADATA_CSUM_SEED = 0x2000
    LARGE_DIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class ReadOnlyCompatible(IntFlag):
    """Features without which a filesystem must not be written, but may be read."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    BTREE_DIR = 0x4
    HUGE_FILE = 0x8
    UNINIT_BG = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    READ_ONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


READABLE = sum(Incompatible) & ~int(
    Incompatible.COMPRESSION | Incompatible.JOURNAL_DEV | Incompatible.DIRDATA
)
"""What is read here; the others, and bits without a name, are not."""

BITMAPS_KNOWN = sum(ReadOnlyCompatible) & ~int(
    ReadOnlyCompatible.BIGALLOC | ReadOnlyCompatible.SHARED_BLOCKS
)
"""With these alone, a clear bit of a block bitmap means one free block."""


def names(features: int, kind: type[IntFlag]) -> str:
    """``features`` as ``dumpe2fs`` prints them, bits without a name in hexadecimal."""
    known = [flag for flag in kind if features & flag]
    words = ["64bit" if flag.name == "BIT64" else str(flag.name).lower() for flag in known]
    unknown = features & ~sum(known)
    return ", ".join(words + ([f"{unknown:#x}"] if unknown else []))
