"""The superblock of an ext2, ext3 or ext4 filesystem, its features and checksums.

Offsets from the kernel's documentation, filesystems/ext4/super.rst; values of the features from
fs/ext4/ext4.h, their names as ``mke2fs -O`` and ``dumpe2fs`` spell them. The checksums are those
of the kernel's lib/crc (``crc32c``, ``crc16``): least significant bit first, without the final
inversion.
"""

from dataclasses import dataclass
from enum import IntFlag
from functools import cache

from balenaflash.errors import ImageError


class Incompatible(IntFlag):
    """Features that a program must know to read the filesystem."""

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
    """Features that a program must know to write the filesystem, or to trust its bitmaps."""

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


_SPARSE_SUPER2 = 0x200
"""The only one of the compatible features that changes where metadata lies."""

_READABLE = sum(Incompatible) & ~int(
    Incompatible.COMPRESSION | Incompatible.JOURNAL_DEV | Incompatible.DIRDATA
)
_BITMAPS_KNOWN = sum(ReadOnlyCompatible) & ~int(
    ReadOnlyCompatible.BIGALLOC | ReadOnlyCompatible.SHARED_BLOCKS
)

_CASTAGNOLI = 0x82F63B78  # polynomial of CRC-32C, reflected
_CRC16 = 0xA001  # polynomial of CRC-16, reflected
_PIECE = 256  # bytes processed at once: an inode
_CRC32C_START = 0xFFFFFFFF


def crc32c(crc: int, data: bytes) -> int:
    """CRC-32C of ``data``, continued from ``crc``.

    A checksum is linear: each of its bits is the parity of certain bits of the data, always the
    same. Computed so, with integers as long as a piece, it is several times as fast as a loop
    over bytes; the 20,000 inodes of a root filesystem need that.
    """
    whole = len(data) - len(data) % _PIECE
    for start in range(0, whole, _PIECE):
        bits = int.from_bytes(data[start : start + _PIECE], "little") ^ crc
        crc = 0
        for mask in _masks():
            crc = crc << 1 | (bits & mask).bit_count() & 1
    return _add_bytes(crc, data[whole:], _table(_CASTAGNOLI))


def crc16(data: bytes) -> int:
    """CRC-16 of ``data``."""
    return _add_bytes(0xFFFF, data, _table(_CRC16))


def _add_bytes(crc: int, data: bytes, table: tuple[int, ...]) -> int:
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@cache
def _masks() -> tuple[int, ...]:
    """For each of the 32 bits of a CRC-32C, highest first, the bits of a piece that it depends on.

    A single bit of the data gives the state that the register has after as many steps as there
    are bits from it on. So the last bit of a piece, the highest of its integer, comes first here.
    """
    states = []
    state = 1
    for _ in range(_PIECE * 8):
        state = _shift(state, _CASTAGNOLI)
        states.append(f"{state:032b}")
    return tuple(int("".join(column), 2) for column in zip(*states, strict=True))


@cache
def _table(polynomial: int) -> tuple[int, ...]:
    """The register after each single byte."""
    states = list(range(256))
    for _ in range(8):
        states = [_shift(state, polynomial) for state in states]
    return tuple(states)


def _shift(state: int, polynomial: int) -> int:
    return state >> 1 ^ (polynomial if state & 1 else 0)


def number(data: bytes | bytearray, offset: int, size: int) -> int:
    """The little-endian number in the ``size`` bytes at ``offset`` of ``data``."""
    return int.from_bytes(data[offset : offset + size], "little")


SUPERBLOCK_OFFSET = 1024  # bytes from the start of the filesystem
SUPERBLOCK_SIZE = 1024
ROOT_INODE = 2

_CHECKSUM_OFFSET = 0x3FC  # the last four bytes, which the checksum does not cover
_MAGIC = 0xEF53
_CRC32C = 1  # s_checksum_type, the only one defined
_MAX_LOG_BLOCK_SIZE = 6  # 64 KiB
_MIN_BLOCKS_PER_GROUP = 256  # mke2fs(8), -g
_SMALL_DESCRIPTOR, _LARGE_DESCRIPTOR = 32, 64  # bytes; the latter is the least with 64bit
_OLD_INODE_SIZE, _OLD_FIRST_INODE = 128, 11  # of revision 0, which does not store them
_STATE_CLEAN, _STATE_ERRORS = 0x1, 0x2  # s_state


@dataclass(frozen=True, slots=True)
class Superblock:
    """Fields of a superblock, checked against each other."""

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
    """``s_first_meta_bg``: the first descriptor block to which ``meta_bg`` applies."""

    backup_groups: tuple[int, int]
    """With ``sparse_super2``, the groups other than 0 that have a superblock; 0 for none."""

    compatible: int
    incompatible: int
    read_only_compatible: int
    state: int
    checksum_seed: int | None
    """Start value of all checksums of metadata; ``None`` without ``metadata_csum``."""

    @property
    def group_count(self) -> int:
        """Number of block groups; the last one may be shorter."""
        return -(-(self.block_count - self.first_block) // self.blocks_per_group)

    @property
    def inode_table_blocks(self) -> int:
        """Number of blocks of one group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def needs_recovery(self) -> bool:
        """True if the journal holds changes that have not reached their place."""
        return bool(self.incompatible & Incompatible.NEEDS_RECOVERY)

    @property
    def is_clean(self) -> bool:
        """True if it was unmounted; meaningful without a journal only."""
        return bool(self.state & _STATE_CLEAN)

    @property
    def has_errors(self) -> bool:
        """True if the kernel found the filesystem damaged."""
        return bool(self.state & _STATE_ERRORS)

    @property
    def has_reliable_bitmaps(self) -> bool:
        """True if a clear bit of a block bitmap means one free block."""
        return (
            not self.needs_recovery
            and self.is_clean
            and not self.has_errors
            and not self.read_only_compatible & ~_BITMAPS_KNOWN
        )

    def group_blocks(self, group: int) -> range:
        """Numbers of the blocks of ``group``."""
        start = self.first_block + group * self.blocks_per_group
        return range(start, min(start + self.blocks_per_group, self.block_count))

    def has_backup(self, group: int) -> bool:
        """True if ``group`` holds a superblock (``ext4_bg_has_super``, fs/ext4/balloc.c)."""
        if group == 0:
            return True
        if self.compatible & _SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.read_only_compatible & ReadOnlyCompatible.SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


def parse_superblock(data: bytes, size: int, name: str) -> Superblock:
    """The superblock in its 1024 bytes ``data``, of a filesystem in a space of ``size`` bytes.

    ``name`` is the name of the filesystem in messages.

    Raises:
        ImageError: there is no superblock, it is damaged, or it describes a filesystem larger
            than the space (``ext4-invalid``) or with a feature that cannot be read
            (``ext4-unsupported``).
    """
    if number(data, 0x38, 2) != _MAGIC:
        raise _invalid(name, "there is no ext4 superblock")
    unreadable = number(data, 0x60, 4) & ~_READABLE
    if unreadable:
        raise ImageError(
            f"{name}: cannot be read, because it has the feature {_feature_names(unreadable)}",
            code="ext4-unsupported",
        )
    superblock = _parse(data, _checksum_seed(data, name), name)
    total = superblock.block_count * superblock.block_size
    if total > size:
        raise ImageError(
            f"{name}: is larger ({total} bytes) than its partition ({size} bytes)",
            code="ext4-invalid",
            hint="Perhaps the partition was made smaller without its filesystem.",
        )
    if not _is_geometry_sound(superblock):
        raise _invalid(name, "the superblock's geometry is impossible")
    if superblock.free_block_count > superblock.block_count:
        raise _invalid(name, "reports more free blocks than it has")
    return superblock


def _feature_names(features: int) -> str:
    """``features`` as ``dumpe2fs`` prints them; bits without a name in hexadecimal."""
    known = [flag for flag in Incompatible if features & flag]
    unknown = features & ~sum(known)
    names = [str(flag.name).lower() for flag in known]
    return ", ".join([*names, f"{unknown:#x}"] if unknown else names)


def _parse(data: bytes, seed: int | None, name: str) -> Superblock:
    log_block_size = number(data, 0x18, 4)
    if log_block_size > _MAX_LOG_BLOCK_SIZE:
        raise _invalid(name, "has blocks of more than 64 KiB")
    incompatible = number(data, 0x60, 4)
    is_64bit = bool(incompatible & Incompatible.BIT64)
    dynamic = number(data, 0x4C, 4) > 0  # s_rev_level: 0 has fixed inodes
    return Superblock(
        uuid=data[0x68:0x78],
        block_size=1024 << log_block_size,
        block_count=number(data, 0x04, 4) | (number(data, 0x150, 4) << 32 if is_64bit else 0),
        free_block_count=number(data, 0x0C, 4) | (number(data, 0x158, 4) << 32 if is_64bit else 0),
        first_block=number(data, 0x14, 4),
        blocks_per_group=number(data, 0x20, 4),
        inodes_per_group=number(data, 0x28, 4),
        inode_count=number(data, 0x00, 4),
        inode_size=number(data, 0x58, 2) if dynamic else _OLD_INODE_SIZE,
        first_inode=number(data, 0x54, 4) if dynamic else _OLD_FIRST_INODE,
        descriptor_size=number(data, 0xFE, 2) if is_64bit else _SMALL_DESCRIPTOR,
        reserved_gdt_blocks=number(data, 0xCE, 2),
        first_meta_group=number(data, 0x104, 4),
        backup_groups=(number(data, 0x24C, 4), number(data, 0x250, 4)),
        compatible=number(data, 0x5C, 4),
        incompatible=incompatible,
        read_only_compatible=number(data, 0x64, 4),
        state=number(data, 0x3A, 2),
        checksum_seed=seed,
    )


def _checksum_seed(data: bytes, name: str) -> int | None:
    """The seed of all other checksums; the superblock's own one is checked."""
    if not number(data, 0x64, 4) & ReadOnlyCompatible.METADATA_CSUM:
        return None
    if data[0x175] != _CRC32C:
        raise ImageError(f"{name}: has checksums of an unknown type", code="ext4-unsupported")
    if crc32c(_CRC32C_START, data[:_CHECKSUM_OFFSET]) != number(data, _CHECKSUM_OFFSET, 4):
        raise _invalid(name, "the superblock's checksum is wrong")
    if number(data, 0x60, 4) & Incompatible.METADATA_CSUM_SEED:
        return number(data, 0x270, 4)
    return crc32c(_CRC32C_START, data[0x68:0x78])


def _is_geometry_sound(superblock: Superblock) -> bool:
    """True for a geometry that the kernel accepts (``ext4_fill_super``, fs/ext4/super.c)."""
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
        and _are_descriptors_sound(superblock)
    )


def _are_descriptors_sound(superblock: Superblock) -> bool:
    size, block_size = superblock.descriptor_size, superblock.block_size
    is_64bit = superblock.incompatible & Incompatible.BIT64
    if is_64bit and not _is_size(size, _LARGE_DESCRIPTOR, block_size):
        return False
    if not superblock.incompatible & Incompatible.META_BG:
        return True
    # s_first_meta_bg is the number of one of the descriptor blocks, or one past the last.
    return superblock.first_meta_group <= -(-superblock.group_count // (block_size // size))


def _is_size(value: int, least: int, most: int) -> bool:
    return least <= value <= most and value.bit_count() == 1


def _is_power(value: int, base: int) -> bool:
    power = base
    while power < value:
        power *= base
    return power == value


def _invalid(name: str, fault: str) -> ImageError:
    return ImageError(f"{name}: {fault}", code="ext4-invalid")
