"""The end of a disk larger than its image: tables left from before, and the image's own backup."""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from balenaflash.errors import VerificationError
from balenaflash.formats.partitions.gpt import SIGNATURE, move_backup
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.source.base import Source
from balenaflash.source.layers import Overlay, Patch
from balenaflash.targets.medium import Medium
from balenaflash.units import KIB, SECTOR_SIZE, Extent

_BACKUP_PLACES = (SECTOR_SIZE, 4 * KIB)
"""Bytes before the end where the last sector starts, whichever size of sectors the disk had when
it was partitioned: USB enclosures differ in what they show of the same disk."""


@dataclass(frozen=True, slots=True)
class DiskEnd:
    """Sectors past the image that are to be written."""

    patches: tuple[Patch, ...]
    """What they are to hold, in order of their offsets."""

    wiped: tuple[Extent, ...]
    """Those that hold the backup of an earlier partition table."""


def plan_end(medium: Medium, moves: Sequence[Patch], image_end: int) -> DiskEnd:
    """What is to be written past an image of ``image_end`` bytes.

    That is zeros over the header of each backup GPT, and those of ``moves`` that lie there. What
    is left of another table would otherwise be offered for repair of the new one, by firmware and
    by partitioning programs. Only its header is needed for that.

    Raises:
        WriteError: the medium cannot be read.
    """
    wiped = tuple(_find_stale_backups(medium, image_end))
    # The sector that the image ends in is written once more, whole.
    first = image_end - image_end % medium.alignment
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
        start = place - place % medium.alignment
        sector = Extent(start, start + max(medium.alignment, SECTOR_SIZE))
        # Read twice: one bit wrong in the signature would leave the backup where it is.
        if start >= image_end and any(
            _read(medium, sector)[place - start :].startswith(SIGNATURE) for _ in range(2)
        ):
            yield sector


def plan_gpt_move(source: Source, table: PartitionTable, disk_size: int) -> tuple[Patch, ...]:
    """What replaces bytes of the image, or follows it, so that its GPT uses a whole disk.

    Empty where there is nothing to move: no GPT, or a disk just as large.

    Raises:
        ImageError: as `move_backup`.
    """
    if table.kind is not TableKind.GPT:
        return ()
    return move_backup(source, table, disk_size)


def lay_move_over(source: Source, patches: Sequence[Patch]) -> Source:
    """The image as it is on a disk with ``patches``, up to its own end."""
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
        WriteError: it cannot be read.
        VerificationError: it reads something else.
    """
    for patch in patches:
        # What reads wrong once is read once more, as all else.
        if all(_read(medium, patch.extent) != patch.data for _ in range(2)):
            raise VerificationError(
                f"{medium.name}: the GPT with its backup at the end of the disk reads otherwise "
                f"than it was written, in the {patch.extent.size} bytes from {patch.offset} on",
                hint="The medium or its reader is failing: try another.",
            )


def _read(medium: Medium, extent: Extent) -> bytes:
    buffer = mmap.mmap(-1, extent.size)
    medium.readinto(extent.start, memoryview(buffer))
    return bytes(buffer)
