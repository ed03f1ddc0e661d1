"""The owner of a byte of an image: a file, a directory, free space, or metadata.

For messages about bytes that differ, so nothing here fails: an unknown owner is ``None``.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from balenaflash.errors import BalenaflashError
from balenaflash.formats.contents import FatFreeSpace
from balenaflash.formats.ext4.volume import EntryKind, Ext4File, Ext4Volume
from balenaflash.formats.fat.layout import read_layout
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.fat.window import Window
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.model import Partition, PartitionKind
from balenaflash.formats.partitions.table import read_table_sectors
from balenaflash.source.base import Source
from balenaflash.units import GIB, Extent

_MAX_DECODED = 2 * GIB
"""Offset in a stream after which filesystems are not searched: all before is decoded and kept."""

_MAX_ENTRIES = 300_000
"""Files and directories of one filesystem that are searched: some seconds of work."""

_FREE = "free space"
_METADATA = "filesystem metadata"


def describe_owner(source: Source, partitions: Sequence[Partition], offset: int) -> str | None:
    """The owner of the byte at ``offset`` of ``source``, which has these ``partitions``.

    The path of a file, ``the directory /etc``, ``free space``, ``filesystem metadata`` or ``the
    partition table``. For a file that is itself an image, as in a flasher, also the owner in it:
    ``/config.json in partition 1 of /opt/balena.img``. ``None`` where the owner is unknown:
    outside of FAT, ext4 and the partition table, in a damaged filesystem or one with more than
    300,000 files, and in a stream that can be read only once.

    It may search all files of a filesystem: some seconds for 100,000 of them.
    """
    try:
        again = source.fork()
        return None if again is None else _describe(again, partitions, offset)
    except BalenaflashError:
        return None


def _describe(source: Source, partitions: Sequence[Partition], offset: int) -> str | None:
    partition = _find_partition(partitions, offset)
    if partition is None:
        sectors = read_table_sectors(source).sectors
        is_table = any(each.extent.contains(offset) for each in sectors)
        return "the partition table" if is_table else None
    extent = partition.extent
    if not source.seekable and extent.end > _MAX_DECODED:
        return None
    filesystem = recognise_filesystem(source, extent)
    match filesystem.type if filesystem else None:
        case "vfat":
            return _describe_in_fat(source, extent, offset)
        case "ext2" | "ext3" | "ext4":
            return _describe_in_ext4(Ext4Volume.open(source, extent), offset)
        case _:
            return None


def _find_partition(partitions: Sequence[Partition], offset: int) -> Partition | None:
    for partition in partitions:
        if partition.kind is not PartitionKind.EXTENDED and partition.extent.contains(offset):
            return partition
    return None


def _describe_in_fat(source: Source, extent: Extent, offset: int) -> str | None:
    inside = offset - extent.start
    owner = _search(_fat_entries(FatVolume.open(source, extent)), inside, extent.size)
    if owner != _METADATA or inside < read_layout(Window(source, extent)).data_offset:
        return owner
    # A cluster without an owner may also be a bad one.
    free = FatFreeSpace.open(source, extent).free_extents(Extent(offset, offset + 1))
    return next((_FREE for _extent in free), None)


def _fat_entries(volume: FatVolume) -> Iterator[tuple[str, Iterable[Extent]]]:
    """Name and places of each file and directory."""
    for entry in chain([volume.find("/")], volume.walk()):
        if entry is not None:
            yield _name(entry.path, is_directory=entry.is_directory), volume.extents(entry.path)


def _describe_in_ext4(volume: Ext4Volume, offset: int) -> str | None:
    free = list(volume.free_extents())
    if any(each.contains(offset) for each in free):
        return _FREE
    owner = _search(_ext4_entries(volume), offset, volume.total_bytes)
    if owner != _METADATA:
        return owner if owner is None else _describe_in_file(volume, owner, offset)
    # Where the free blocks are not known for sure, one of them may be taken for metadata.
    is_sure = sum(each.size for each in free) == volume.free_bytes
    return owner if is_sure and volume.extent.contains(offset) else None


def _ext4_entries(volume: Ext4Volume) -> Iterator[tuple[str, Iterable[Extent]]]:
    """Name and places of each file and directory; of a file with several names once."""
    seen: set[int] = set()
    for entry in chain([volume.find("/")], volume.walk()):
        if entry is not None and entry.inode not in seen:
            seen.add(entry.inode)
            is_directory = entry.kind is EntryKind.DIRECTORY
            yield _name(entry.path, is_directory=is_directory), volume.extents(entry)


def _name(path: str, *, is_directory: bool) -> str:
    if path == "/":
        return "the root directory"
    return f"the directory {path}" if is_directory else path


def _search(entries: Iterable[tuple[str, Iterable[Extent]]], offset: int, size: int) -> str | None:
    """The name of the entry that holds the byte at ``offset``; metadata if none does.

    ``None`` if there are too many entries, or more in them than the ``size`` of the filesystem:
    a hostile one would take forever.
    """
    entries = iter(entries)
    for name, places in islice(entries, _MAX_ENTRIES):
        for place in places:
            if place.contains(offset):
                return name
            size -= place.size
        if size < 0:
            return None
    return _METADATA if next(entries, None) is None else None


def _describe_in_file(volume: Ext4Volume, owner: str, offset: int) -> str:
    """``owner``; if that is a file with an image, the owner in the image and the file."""
    entry = volume.find(owner, follow=False) if owner.startswith("/") else None
    # An image within an image may contain itself.
    if entry is None or isinstance(volume.source, Ext4File):
        return owner
    try:
        file = Ext4File(volume, entry, owner)
        partitions = read_table_sectors(file).table.partitions
    except BalenaflashError:
        return owner  # not an image, as most files
    places = [
        piece.start + offset - place.start
        for piece, place in file.runs()
        if place is not None and place.contains(offset)
    ]
    if not places:
        return owner
    inner = describe_owner(file, partitions, places[0])
    partition = _find_partition(partitions, places[0])
    if partition is not None:
        inner = (
            f"{inner} in partition {partition.number}" if inner else f"partition {partition.number}"
        )
    return f"{inner or 'the space between partitions'} of {owner}"
