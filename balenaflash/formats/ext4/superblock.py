"""The superblock of an ext2, ext3 or ext4 filesystem, its feature words and checksums.

Values from the kernel's fs/ext4/ext4.h; names as ``mke2fs -O`` and ``dumpe2fs`` spell them.

Both as the kernel computes them (lib/crc: ``crc32c``, ``crc16``): least significant bit first,
without the final inversion.

Offsets and values from the kernel's documentation, filesystems/ext4/super.rst.
"""

import uuid
from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import NoReturn

from balenaflash.errors import ImageError


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


def feature_names(features: int, kind: type[IntFlag]) -> str:
    """``features`` as ``dumpe2fs`` prints them, bits without a name in hexadecimal."""
    known = [flag for flag in kind if features & flag]
    words = ["64bit" if flag.name == "BIT64" else str(flag.name).lower() for flag in known]
    unknown = features & ~sum(known)
    return ", ".join(words + ([f"{unknown:#x}"] if unknown else []))


_CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, reflected
_CRC16 = 0xA001  # polynomial of CRC-16, reflected
_PIECE = 256  # bytes taken at once, which is an inode

CRC32C_START = 0xFFFFFFFF
CRC16_START = 0xFFFF


def crc32c(crc: int, data: bytes) -> int:
    """CRC-32C of ``data``, going on from ``crc``.

    A checksum is linear: each of its bits is the parity of some bits of the data, always the
    same. Taken so, with integers as long as a piece, it is several times as fast as a loop over
    bytes; the 20,000 inodes of a root filesystem need that.
    """
    whole = len(data) - len(data) % _PIECE
    for start in range(0, whole, _PIECE):
        bits = int.from_bytes(data[start : start + _PIECE], "little") ^ crc
        crc = 0
        for mask in _masks():
            crc = crc << 1 | (bits & mask).bit_count() & 1
    return _go_on(crc, data[whole:], _table(_CASTAGNOLI))


def crc16(crc: int, data: bytes) -> int:
    """CRC-16 of ``data``, going on from ``crc``."""
    return _go_on(crc, data, _table(_CRC16))


def _go_on(crc: int, data: bytes, table: tuple[int, ...]) -> int:
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@cache
def _masks() -> tuple[int, ...]:
    """The bits of a piece whose parity is a bit of its CRC-32C, for each of the 32, highest first.

    A single bit gives what the register holds after as many steps as there are bits from it on;
    so the last bit of a piece, the highest of its integer, comes first here.
    """
    states = []
    state = 1
    for _ in range(_PIECE * 8):
        state = _step(state, _CASTAGNOLI)
        states.append(f"{state:032b}")
    return tuple(int("".join(column), 2) for column in zip(*states, strict=True))


@cache
def _table(polynomial: int) -> tuple[int, ...]:
    return tuple(_divide(byte, polynomial) for byte in range(256))


def _divide(value: int, polynomial: int) -> int:
    for _ in range(8):
        value = _step(value, polynomial)
    return value


def _step(value: int, polynomial: int) -> int:
    return value >> 1 ^ (polynomial if value & 1 else 0)


SUPERBLOCK_OFFSET = 1024  # bytes from the start of the filesystem
SUPERBLOCK_SIZE = 1024
ROOT_INODE = 2

_MAGIC = 0xEF53
_CHECKSUM_OFFSET = 0x3FC  # the last four bytes, which the checksum does not cover
_CRC32C = 1  # s_checksum_type, the only one defined
_MAX_LOG_BLOCK_SIZE = 6  # 64 KiB
_MIN_BLOCKS_PER_GROUP = 256  # mke2fs(8), -g
_SMALL_DESCRIPTOR, _LARGE_DESCRIPTOR = 32, 64  # bytes; the latter is the least with 64bit
_OLD_INODE_SIZE, _OLD_FIRST_INODE = 128, 11  # of revision 0, which does not store them
_STATE_CLEAN, _STATE_ERRORS = 0x1, 0x2  # s_state


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of a superblock that are used here, checked against each other."""

    label: str
    uuid: bytes
    block_size: int
    block_count: int
    free_block_count: int
    first_block: int
    """Number of group 0's first block: 1 with blocks of 1 KiB, else 0."""

    blocks_per_group: int
    inodes_per_group: int
    inode_count: int
    inode_size: int
    first_inode: int
    """Number of the first inode that is not reserved."""

    descriptor_size: int
    reserved_gdt_blocks: int
    first_meta_group: int
    """``s_first_meta_bg``: the descriptor block from which on ``meta_bg`` holds."""

    backup_groups: tuple[int, int]
    """With ``sparse_super2``, the groups other than 0 with a superblock; 0 for none."""

    compatible: int
    incompatible: int
    read_only_compatible: int
    state: int
    checksum_seed: int | None
    """What the checksums of metadata start from; ``None`` without ``metadata_csum``."""

    @property
    def group_count(self) -> int:
        """How many block groups there are, the last one perhaps a short one."""
        return -(-(self.block_count - self.first_block) // self.blocks_per_group)

    @property
    def inode_table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def needs_recovery(self) -> bool:
        """Whether its journal holds changes that have not reached their place."""
        return bool(self.incompatible & Incompatible.NEEDS_RECOVERY)

    @property
    def is_clean(self) -> bool:
        """Whether it was unmounted, where a journal does not tell."""
        return bool(self.state & _STATE_CLEAN)

    @property
    def has_errors(self) -> bool:
        """Whether the kernel found it damaged."""
        return bool(self.state & _STATE_ERRORS)

    def group_blocks(self, group: int) -> range:
        """The numbers of the blocks of ``group``."""
        start = self.first_block + group * self.blocks_per_group
        return range(start, min(start + self.blocks_per_group, self.block_count))

    def has_backup(self, group: int) -> bool:
        """Whether ``group`` holds a superblock (``ext4_bg_has_super`` in fs/ext4/balloc.c)."""
        if group == 0:
            return True
        if self.compatible & Compatible.SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.read_only_compatible & ReadOnlyCompatible.SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


def parse_superblock(data: bytes, size: int, name: str) -> Superblock:
    """The superblock in its 1024 bytes ``data``, of a filesystem in a space of ``size`` bytes.

    ``name`` is what to call the filesystem in messages.

    Raises:
        ImageError: there is none, it is damaged or larger than the space (``ext4-invalid``),
            or it has a feature that cannot be read (``ext4-unsupported``).
    """
    if _u16(data, 0x38) != _MAGIC:
        _refuse(name, "there is no ext4 superblock")
    _refuse_unreadable(data, name)
    seed = _checksum_seed(data, name)
    if _u32(data, 0x18) > _MAX_LOG_BLOCK_SIZE:
        _refuse(name, "blocks of more than 64 KiB")
    superblock = _parse(data, seed)
    _check(superblock, size, name)
    return superblock


def _parse(data: bytes, seed: int | None) -> Superblock:
    incompatible = _u32(data, 0x60)
    is_64bit = bool(incompatible & Incompatible.BIT64)
    dynamic = _u32(data, 0x4C) > 0  # s_rev_level: 0 has fixed inodes
    return Superblock(
        label=data[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        uuid=data[0x68:0x78],
        block_size=1024 << _u32(data, 0x18),
        block_count=_u32(data, 0x04) | (_u32(data, 0x150) << 32 if is_64bit else 0),
        free_block_count=_u32(data, 0x0C) | (_u32(data, 0x158) << 32 if is_64bit else 0),
        first_block=_u32(data, 0x14),
        blocks_per_group=_u32(data, 0x20),
        inodes_per_group=_u32(data, 0x28),
        inode_count=_u32(data, 0x00),
        inode_size=_u16(data, 0x58) if dynamic else _OLD_INODE_SIZE,
        first_inode=_u32(data, 0x54) if dynamic else _OLD_FIRST_INODE,
        descriptor_size=_u16(data, 0xFE) if is_64bit else _SMALL_DESCRIPTOR,
        reserved_gdt_blocks=_u16(data, 0xCE),
        first_meta_group=_u32(data, 0x104),
        backup_groups=(_u32(data, 0x24C), _u32(data, 0x250)),
        compatible=_u32(data, 0x5C),
        incompatible=incompatible,
        read_only_compatible=_u32(data, 0x64),
        state=_u16(data, 0x3A),
        checksum_seed=seed,
    )


def _refuse_unreadable(data: bytes, name: str) -> None:
    incompatible = _u32(data, 0x60)
    unreadable = incompatible & ~READABLE
    if unreadable:
        raise ImageError(
            f"{name}: cannot be read here, for it has the feature"
            f" {feature_names(unreadable, Incompatible)}",
            code="ext4-unsupported",
        )


def _checksum_seed(data: bytes, name: str) -> int | None:
    """Check the superblock's own checksum, and give the seed of all others."""
    if not _u32(data, 0x64) & ReadOnlyCompatible.METADATA_CSUM:
        return None
    if data[0x175] != _CRC32C:
        raise ImageError(f"{name}: checksums of an unknown kind", code="ext4-unsupported")
    if crc32c(CRC32C_START, data[:_CHECKSUM_OFFSET]) != _u32(data, _CHECKSUM_OFFSET):
        _refuse(name, "the superblock's checksum is wrong")
    if _u32(data, 0x60) & Incompatible.METADATA_CSUM_SEED:
        return _u32(data, 0x270)
    return crc32c(CRC32C_START, data[0x68:0x78])


def _check(superblock: Superblock, size: int, name: str) -> None:
    """Refuse a geometry that cannot be, as ``ext4_fill_super`` does in fs/ext4/super.c."""
    total = superblock.block_count * superblock.block_size
    if total > size:
        raise ImageError(
            f"{name}: is {total} bytes long, in a partition of {size}",
            code="ext4-invalid",
            hint="The partition may have been made smaller without its filesystem.",
        )
    if not _is_geometry_sound(superblock):
        _refuse(name, "the superblock's geometry is impossible")
    if superblock.free_block_count > superblock.block_count:
        _refuse(name, "more blocks are free than there are")


def _is_geometry_sound(superblock: Superblock) -> bool:
    block_size = superblock.block_size
    bits = block_size * 8
    bigalloc = superblock.read_only_compatible & ReadOnlyCompatible.BIGALLOC
    first_block = 1 if block_size == 1024 and not bigalloc else 0  # noqa: PLR2004 -- 1 KiB
    return (
        superblock.first_block == first_block
        and superblock.block_count > first_block
        and superblock.blocks_per_group >= _MIN_BLOCKS_PER_GROUP
        and (superblock.blocks_per_group <= bits or bool(bigalloc))
        and 0 < superblock.inodes_per_group <= bits
        and superblock.inode_count == superblock.inodes_per_group * superblock.group_count
        and _is_size(superblock.inode_size, _OLD_INODE_SIZE, block_size)
        and superblock.first_inode >= _OLD_FIRST_INODE
        and _is_descriptor_size(superblock)
        and _is_meta_group(superblock)
    )


def _is_meta_group(superblock: Superblock) -> bool:
    """Whether ``s_first_meta_bg`` is one of the blocks of descriptors, or the one behind them."""
    if not superblock.incompatible & Incompatible.META_BG:
        return True
    per_block = superblock.block_size // superblock.descriptor_size
    return superblock.first_meta_group <= -(-superblock.group_count // per_block)


def _is_descriptor_size(superblock: Superblock) -> bool:
    if not superblock.incompatible & Incompatible.BIT64:
        return True
    return _is_size(superblock.descriptor_size, _LARGE_DESCRIPTOR, superblock.block_size)


def _is_size(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value.bit_count() == 1


def _is_power(number: int, base: int) -> bool:
    power = base
    while power < number:
        power *= base
    return power == number


def _refuse(name: str, fault: str) -> NoReturn:
    raise ImageError(f"{name}: {fault}", code="ext4-invalid")


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def format_uuid(value: bytes) -> str:
    """A UUID as ``blkid`` prints it."""
    return str(uuid.UUID(bytes=value))
