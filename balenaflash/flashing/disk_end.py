"""The end of a disk larger than its image: backups of old partition tables, and of the image's."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from balenaflash.errors import VerificationError
from balenaflash.formats.partitions.gpt import SIGNATURE, move_backup
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.source.base import Source
from balenaflash.source.layers import Overlay, Patch
from balenaflash.targets.medium import Medium
from balenaflash.units import KIB, SECTOR_SIZE, Extent, align_down

_BACKUP_PLACES = (SECTOR_SIZE, 4 * KIB)
"""Bytes from the start of the last sector to the end of the disk.

The disk may have been partitioned with either size of sectors: USB enclosures show the same disk
with different ones.
"""


@dataclass(frozen=True, slots=True)
class DiskEnd:
    """Sectors past the image that are to be written."""

    patches: tuple[Patch, ...]
    """Their new content, in order of the offsets."""

    wiped: tuple[Extent, ...]
    """Sectors that hold the backup of an earlier partition table."""


def plan_end(medium: Medium, moves: Sequence[Patch], image_end: int) -> DiskEnd:
    """The plan for what follows an image of ``image_end`` bytes.

    The header of each old backup GPT is overwritten with zeros, and the parts of ``moves`` that
    lie there are written. Firmware and partitioning programs would otherwise offer an old backup
    to repair the new table with. They need its header for that, so the header is enough.

    Raises:
        WriteError: the medium cannot be read.
    """
    wiped = tuple(_find_stale_backups(medium, image_end))
    # The sector that the image ends in is written once more, whole.
    first = align_down(image_end, medium.alignment)
    moved = [
        Patch(max(patch.offset, first), patch.data[max(0, first - patch.offset) :])
        for patch in moves
        if patch.extent.end > image_end
    ]
    zeros = [
        Patch(sector.start, bytes(sector.size))
        for sector in wiped
        if not any(sector.overlaps(patch.extent) for patch in moved)
    ]
    return DiskEnd(tuple(sorted((*moved, *zeros))), wiped)


def _find_stale_backups(medium: Medium, image_end: int) -> Iterator[Extent]:
    for distance in _BACKUP_PLACES:
        place = medium.size - distance
        start = align_down(place, medium.alignment)
        sector = Extent(start, start + max(medium.alignment, SECTOR_SIZE))
        # Read twice: one wrong bit in the signature would leave the backup in place.
        if start >= image_end and any(
            _read(medium, sector)[place - start :].startswith(SIGNATURE) for _ in range(2)
        ):
            yield sector


def plan_gpt_move(source: Source, table: PartitionTable, disk_size: int) -> tuple[Patch, ...]:
    """Patches on the image and past its end that make its GPT use a whole disk.

    Empty if the image has no GPT, or the disk is just as large.

    Raises:
        ImageError: as `move_backup`.
    """
    if table.kind is not TableKind.GPT:
        return ()
    return move_backup(source, table, disk_size)


def lay_move_over(source: Source, patches: Sequence[Patch]) -> Source:
    """The image with ``patches``, up to its own end."""
    # Past the end of a stream, wherever that is, nothing is read.
    end = source.size
    inside = [
        patch if end is None else Patch(patch.offset, patch.data[: end - patch.offset])
        for patch in patches
        if end is None or patch.offset < end
    ]
    return Overlay(source, inside) if inside else source


def require_moved(medium: Medium, patches: Sequence[Patch]) -> None:
    """Return if the medium holds ``patches``.

    Raises:
        WriteError: the medium cannot be read.
        VerificationError: it reads something else.
    """
    for patch in patches:
        # As everywhere, only what reads wrong twice is wrong.
        if all(_read(medium, patch.extent) != patch.data for _ in range(2)):
            raise VerificationError(
                f"{medium.name}: the GPT with its backup at the end of the disk does not read "
                f"back as written: {patch.extent.size} bytes from byte {patch.offset}",
                hint="The medium or its reader is failing. Try another one.",
            )


def _read(medium: Medium, extent: Extent) -> bytes:
    buffer = mmap.mmap(-1, extent.size)
    medium.readinto(extent.start, memoryview(buffer))
    return bytes(buffer)
