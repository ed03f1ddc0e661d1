"""The owner of a byte of an image: a file by its path, a part of a filesystem or of the table.

For messages about bytes that differ, so it never fails: what cannot be told is not told.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from balenaflash.errors import BalenaflashError, ImageError
from balenaflash.formats.ext4.owners import MAX_ENTRIES, Claims
from balenaflash.formats.ext4.volume import Ext4File, Ext4Volume
from balenaflash.formats.fat.layout import FIRST_CLUSTER, FatLayout, read_layout
from balenaflash.formats.fat.table import FREE, FatTable
from balenaflash.formats.fat.volume import FatEntry, FatVolume
from balenaflash.formats.fat.window import Window
from balenaflash.formats.filesystems import recognise_filesystem
from balenaflash.formats.partitions.model import Partition, PartitionKind
from balenaflash.formats.partitions.table import read_table_sectors
from balenaflash.source.base import Source
from balenaflash.units import GIB, SECTOR_SIZE, Extent

_MAX_DECODED = 2 * GIB
"""How far into a stream filesystems are looked at: all before has to be decoded, and is kept."""


def describe_owners(
    source: Source, partitions: Iterable[Partition], offsets: Sequence[int]
) -> tuple[str | None, ...]:
    """What lies at each of ``offsets``, in bytes from the start of ``source``.

    ``/EFI/BOOT/grub.cfg`` for the content of a file, otherwise words such as ``the first file
    allocation table``, ``the journal``, ``the directory /etc`` or ``free space``. In a file that
    is itself an image, as a flasher carries one, also what lies there in it. ``None`` where
    nothing is known: outside FAT, ext4 and the partition table, in a damaged filesystem or one
    with more than 300,000 files, and in a stream that can be read only once.

    All files of a filesystem are gone through, once for all offsets, which takes some seconds
    for 100,000 of them.
    """
    again = _read_again(source)
    known = {} if again is None else _describe(again, list(partitions), offsets, goes_deeper=True)
    return tuple(known.get(offset) for offset in offsets)


def _read_again(source: Source) -> Source | None:
    try:
        return source.fork()
    except BalenaflashError:
        return None


def _describe(
    source: Source, partitions: list[Partition], offsets: Iterable[int], *, goes_deeper: bool
) -> dict[int, str]:
    outside = set(offsets)
    known: dict[int, str] = {}
    for partition in partitions:
        inside = {each for each in outside if partition.extent.contains(each)}
        if inside and partition.kind is not PartitionKind.EXTENDED:
            known |= _describe_in_filesystem(
                source, partition.extent, inside, goes_deeper=goes_deeper
            )
            outside -= inside
    return known | _describe_in_table(source, outside)


def _describe_in_table(source: Source, offsets: set[int]) -> dict[int, str]:
    claims = Claims(offsets)
    claims.claim(Extent(0, SECTOR_SIZE), "the master boot record")
    try:
        if not claims.is_settled:
            for sectors in read_table_sectors(source).sectors:
                claims.claim(sectors.extent, "the partition table")
    except BalenaflashError:
        pass  # the space around partitions stays without a name
    return claims.owners()


def _describe_in_filesystem(
    source: Source, extent: Extent, offsets: set[int], *, goes_deeper: bool
) -> dict[int, str]:
    if not source.seekable and extent.end > _MAX_DECODED:
        return {}
    claims = Claims(offsets)
    try:
        volume = _claim(source, extent, claims)
    except BalenaflashError:
        volume = None  # what was claimed before the damage was met still holds
    known = claims.owners()
    if goes_deeper and volume is not None:
        known |= _describe_in_files(volume, known)
    return known


def _claim(source: Source, extent: Extent, claims: Claims) -> Ext4Volume | None:
    """Claim what the filesystem in ``extent`` knows of; the volume if files in it are images."""
    filesystem = recognise_filesystem(source, extent)
    match filesystem.type if filesystem else None:
        case "vfat":
            # pyfatfs takes time to import, and is needed only now.

            claim_fat(source, extent, claims)
        case "ext2" | "ext3" | "ext4":
            volume = Ext4Volume.open(source, extent)
            claims.claim(Extent(volume.extent.end, extent.end), "the space behind the filesystem")
            volume.claim(claims)
            return volume
        case _:
            pass  # nothing that is understood
    return None


def _describe_in_files(volume: Ext4Volume, known: dict[int, str]) -> dict[int, str]:
    """What lies there in files that are images themselves."""
    paths: dict[str, list[int]] = {}
    for offset, owner in known.items():
        if owner.startswith("/"):
            paths.setdefault(owner, []).append(offset)
    deeper: dict[int, str] = {}
    for path, offsets in paths.items():
        try:
            deeper |= _describe_in_file(volume, path, offsets)
        except BalenaflashError:
            continue  # it is no image, as most files
    return deeper


def _describe_in_file(volume: Ext4Volume, path: str, offsets: list[int]) -> dict[int, str]:
    entry = volume.find(path, follow=False)
    if entry is None:
        return {}
    file = Ext4File(volume, entry, path)
    partitions = [
        each
        for each in read_table_sectors(file).table.partitions
        if each.kind is not PartitionKind.EXTENDED
    ]
    inner = {
        piece.start + offset - place.start: offset
        for piece, place in file.runs()
        if place is not None
        for offset in offsets
        if place.contains(offset)
    }
    described = _describe(file, partitions, inner, goes_deeper=False)
    return {
        offset: f"{_with_partition(partitions, place, described.get(place))} of {path}"
        for place, offset in inner.items()
    }


def _with_partition(partitions: list[Partition], offset: int, owner: str | None) -> str:
    number = next((each.number for each in partitions if each.extent.contains(offset)), None)
    if number is None:
        return owner or "the space around partitions"
    return f"{owner} in partition {number}" if owner else f"partition {number}"


_ORDINALS = ("first", "second", "third", "fourth")  # no volume has more tables


def claim_fat(source: Source, extent: Extent, claims: Claims) -> None:
    """Claim what the FAT volume in the bytes ``extent`` of ``source`` knows of.

    Directories are read only if the layout and the table do not settle everything.

    Raises:
        ImageError: the volume is damaged, or cannot be read; what was claimed before holds.
    """
    window = Window(source, extent)
    layout = read_layout(window)
    _claim_layout(layout, extent, claims)
    if claims.is_settled:
        return
    _claim_unused(FatTable(window, layout), extent, claims)
    if not claims.is_settled:
        _claim_entries(source, layout, extent, claims)


def _claim_layout(layout: FatLayout, extent: Extent, claims: Claims) -> None:
    def claim(start: int, end: int, owner: str) -> None:
        claims.claim(Extent(extent.start + start, extent.start + end), owner)

    claim(0, SECTOR_SIZE, "the boot sector")
    if layout.fsinfo_offset is not None:
        claim(layout.fsinfo_offset, layout.fsinfo_offset + SECTOR_SIZE, "the FSInfo sector")
    if layout.backup_offset is not None:
        end = layout.backup_offset + SECTOR_SIZE
        claim(layout.backup_offset, end, "the backup of the boot sector")
    claim(0, layout.tables[0].start, "the reserved sectors")
    for ordinal, table in zip(_ORDINALS, layout.tables, strict=False):
        claim(table.start, table.end, f"the {ordinal} file allocation table")
    if layout.root is not None:
        claim(layout.root.start, layout.root.end, "the root directory")
    claim(
        layout.cluster_offset(layout.end_cluster), extent.size, "the space behind the last cluster"
    )


def _claim_unused(table: FatTable, extent: Extent, claims: Claims) -> None:
    layout = table.layout
    for offset in claims.pending:
        inside = offset - extent.start - layout.data_offset
        cluster = FIRST_CLUSTER + inside // layout.cluster_size
        start = extent.start + layout.cluster_offset(cluster)
        place = Extent(start, start + layout.cluster_size)
        if table[cluster] == FREE:
            claims.claim(place, "free space")
        elif table[cluster] == table.bad:
            claims.claim(place, "a cluster that is marked as bad")


def _claim_entries(source: Source, layout: FatLayout, extent: Extent, claims: Claims) -> None:
    volume = FatVolume.open(source, extent)
    left = layout.cluster_count
    if layout.root is None:
        root = FatEntry("/", is_directory=True, size=0, modified=None)
        left -= _claim_entry(volume, root, extent, claims)
    for entry in islice(volume.walk(), MAX_ENTRIES):
        if claims.is_settled:
            return
        left -= _claim_entry(volume, entry, extent, claims)
        if left < 0:  # they share clusters, and following all of them could take for ever
            raise ImageError(
                f"{source.name}: the FAT volume at byte {extent.start}: files share clusters",
                code="fat-invalid",
            )


def _claim_entry(volume: FatVolume, entry: FatEntry, extent: Extent, claims: Claims) -> int:
    """Claim the clusters of one entry; how many there are."""
    owner = entry.path
    if entry.is_directory:
        owner = "the root directory" if entry.path == "/" else f"the directory {entry.path}"
    position = 0
    for place in volume.extents(entry.path):
        start, end = extent.start + place.start, extent.start + place.end
        used = place.size if entry.is_directory else entry.size - position
        middle = start + max(0, min(used, place.size))
        claims.claim(Extent(start, middle), owner)
        claims.claim(Extent(middle, end), f"the space behind the end of {owner}")
        position += place.size
    return position // volume.cluster_size
