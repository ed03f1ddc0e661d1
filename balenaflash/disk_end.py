"""The end of a disk larger than its image: tables left from before, and the image's own backup."""

import mmap
from collections.abc import Sequence

from balenaflash.errors import VerificationError, WriteError
from balenaflash.extent import KIB, SECTOR_SIZE, Extent
from balenaflash.image.patch import Overlay, Patch
from balenaflash.image.source import Source
from balenaflash.image.table.gpt import SIGNATURE
from balenaflash.image.table.gpt_backup import move_backup
from balenaflash.image.table.model import PartitionTable, TableKind
from balenaflash.target.medium import Medium

_BACKUP_PLACES = (SECTOR_SIZE, 4 * KIB)
"""Bytes before the end where the last sector starts, whichever size of sectors the disk had when
it was partitioned: USB enclosures differ in what they show of the same disk."""


def wipe_stale_backups(medium: Medium, image_end: int) -> tuple[Extent, ...]:
    """Zero the header of each backup GPT behind the image; the sectors that were zeroed.

    What is left of another table would otherwise be offered for repair of the new one, by
    firmware and by partitioning programs. Only its header is needed for that, and nothing else
    behind the image is touched.

    Raises:
        WriteError: the medium failed.
    """
    wiped = []
    for distance in _BACKUP_PLACES:
        place = medium.size - distance
        start = place - place % medium.alignment
        sector = Extent(start, start + max(medium.alignment, SECTOR_SIZE))
        if start < image_end:
            continue
        content = _read(medium, sector)
        if content[place - start :].startswith(SIGNATURE):
            # mmap gives zeroed pages, aligned as O_DIRECT wants them.
            medium.write(sector.start, memoryview(mmap.mmap(-1, sector.size)))
            wiped.append(sector)
    return tuple(wiped)


def require_wiped(medium: Medium, wiped: Sequence[Extent], *, written: int) -> None:
    """Return if the medium reads zeros where it was wiped.

    Raises:
        WriteError: it cannot be read.
        VerificationError: it reads something else.
    """
    for sector in wiped:
        if any(_read(medium, sector)):
            raise VerificationError(
                f"{medium.name}: the backup of an earlier partition table, at byte "
                f"{sector.start}, reads as before although it was wiped",
                written=written,
                hint="The medium or its reader is failing: try another.",
            )


def plan_gpt_move(source: Source, table: PartitionTable, disk_size: int) -> tuple[Patch, ...]:
    """What is to be written behind the read-back so that the image's GPT uses a whole disk.

    Empty where there is nothing to move: no GPT, or a disk just as large.

    Raises:
        ImageError: as `move_backup`.
    """
    if table.kind is not TableKind.GPT:
        return ()
    return move_backup(source, table, disk_size)


def lay_move_over(source: Source, patches: Sequence[Patch], image_end: int) -> Source:
    """The image as it is on a disk after `move_gpt`, up to its own end."""
    inside = [
        Patch(patch.offset, patch.data[: image_end - patch.offset])
        for patch in patches
        if patch.offset < image_end
    ]
    return Overlay(source, inside) if inside else source


def move_gpt(medium: Medium, patches: Sequence[Patch], *, written: int) -> None:
    """Write ``patches`` in their order, and read each back from the medium.

    Raises:
        WriteError: the medium failed. The image is there, one copy of its GPT is sound.
        VerificationError: it does not read what was written.
    """
    try:
        for patch in patches:
            buffer = memoryview(mmap.mmap(-1, len(patch.data)))  # aligned as O_DIRECT wants it
            buffer[:] = patch.data
            medium.write(patch.offset, buffer)
            # Each is on the medium before the next: so one copy is sound whenever power fails.
            medium.flush()
        medium.begin_read_back()
    except WriteError as error:
        raise WriteError(
            f"{error}; the image itself is there, the backup of its GPT was not moved",
            written=written,
            code=error.code,
            hint=error.hint,
        ) from error
    require_moved(medium, patches, written=written)


def require_moved(medium: Medium, patches: Sequence[Patch], *, written: int = 0) -> None:
    """Return if the medium holds ``patches``.

    Raises:
        WriteError: it cannot be read.
        VerificationError: it reads something else.
    """
    for patch in patches:
        if _read(medium, patch.extent) != patch.data:
            raise VerificationError(
                f"{medium.name}: the GPT with its backup at the end of the disk reads otherwise "
                f"than it was written, in the {patch.extent.size} bytes from {patch.offset} on",
                written=written,
                hint="The medium or its reader is failing: try another.",
            )


def _read(medium: Medium, extent: Extent) -> bytes:
    buffer = mmap.mmap(-1, extent.size)
    medium.readinto(extent.start, memoryview(buffer))
    return bytes(buffer)
