"""Which part of a FAT volume, or which file in it, a byte belongs to."""

from itertools import islice

from balenaflash.errors import ImageError
from balenaflash.extent import SECTOR_SIZE, Extent
from balenaflash.image.claims import MAX_ENTRIES, Claims
from balenaflash.image.fat.layout import FIRST_CLUSTER, FatLayout, read_layout
from balenaflash.image.fat.table import FREE, FatTable
from balenaflash.image.fat.volume import FatEntry, FatVolume
from balenaflash.image.fat.window import Window
from balenaflash.image.source import Source

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
