"""Block maps of images: made, and compared with what they are of."""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from balenaflash.durable import FileType, find_type, open_folder, write_all
from balenaflash.errors import ImageError, Problem, TargetRefusedError
from balenaflash.extent import Extent, format_size
from balenaflash.image.balenaos import find_boot_partition
from balenaflash.image.bmap.beside import find_beside, read_bmap
from balenaflash.image.bmap.block_map import Bmap
from balenaflash.image.bmap.check import compare_with_bmap, left_out_in_use
from balenaflash.image.bmap.create import create_bmap
from balenaflash.image.bmap.xml import serialise
from balenaflash.image.container.location import ImageLocation
from balenaflash.image.contents import Kind
from balenaflash.image.half_edited import warn_of_half_edited
from balenaflash.image.opening import open_for_reading
from balenaflash.image.source import Source
from balenaflash.image.table.partitions import PartitionTable, read_table
from balenaflash.image_use import require_unused
from balenaflash.output_mode import output_mode
from balenaflash.progress import Progress

_NAME_MAX = 255  # bytes, linux/limits.h
_SUFFIX = ".bmap"
_NAME_ONE = "Name a file with -o."


@dataclass(frozen=True, slots=True)
class BmapCreation:
    """A block map that was made."""

    path: Path
    bmap: Bmap
    bytes_of: dict[Kind, int]
    """Bytes of the image by kind; what is free is not in the map."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BmapCheck:
    """An image compared with a block map."""

    path: Path
    """Of the block map."""

    bmap: Bmap
    compared_bytes: int
    """Bytes of the ranges that have checksums."""

    differing: tuple[Extent, ...]
    """Ranges of the image of other content than the map says, adjacent ones in one piece."""

    left_out: int | None
    """Bytes not in the map that the image has in use; ``None`` where that cannot be told."""

    warnings: tuple[str, ...]


def create(
    image: ImageLocation, out: Path | None, *, overwrite: bool = False, progress: Progress
) -> BmapCreation:
    """Make the block map of ``image`` in the file ``out``, or beside it; whole or not at all.

    Of a compressed image it is the map of what comes out of it, as bmaptool has it.

    Raises:
        ImageError: the image cannot be read, or is not one of balenaOS layout.
        EditError: another process is editing it.
        TargetRefusedError: ``out`` exists and ``overwrite`` is not set, or it cannot be made.
    """
    place = out or _beside(image)
    # Now, for reading the image takes time; and again when it has passed.
    _require_place(place, image, overwrite=overwrite)
    with open_for_reading(image) as opened:
        require_unused(image)
        table = read_table(opened.source)
        created = create_bmap(opened.source, table, progress)
        opened.source.finish()
        warnings = (*opened.warnings, *table.warnings, *_about_edit(opened.source, table))
    _require_place(place, image, overwrite=overwrite)
    _write(place, serialise(created.bmap), overwrite=overwrite, mode=output_mode(image))
    faults = (
        f"partition {number}: all of it counts as in use: {fault}"
        for number, fault in sorted(created.faults.items())
    )
    return BmapCreation(place, created.bmap, created.bytes_of, (*warnings, *faults))


def check(image: ImageLocation, bmap_path: Path | None, *, progress: Progress) -> BmapCheck:
    """Compare ``image`` with the block map at ``bmap_path``, or with the one beside it.

    Raises:
        ImageError: there is no map, it is not valid or its own checksum does not match, it is
            of an image of another size, or one of the two cannot be read.
        EditError: another process is editing the image.
    """
    path = bmap_path or (find_beside(image) if isinstance(image, Path) else None)
    if path is None:
        raise ImageError(
            f"{image}: has no block map beside it",
            code="bmap-missing",
            hint="Name one with --bmap, or make one with balenaflash bmap create.",
        )
    bmap = read_bmap(path)
    with open_for_reading(image) as opened:
        left_out = _left_out(opened.source, bmap)
        comparison = compare_with_bmap(opened.source, bmap, progress)
        opened.source.finish()
        warnings = opened.warnings
    if left_out:
        warnings += (_word_of_left_out(path, left_out),)
    if any(mapped.checksum is None for mapped in bmap.ranges):
        warnings += (f"{path}: has ranges without a checksum, which were not compared",)
    return BmapCheck(
        path, bmap, comparison.compared_bytes, comparison.differing, left_out, warnings
    )


def _about_edit(source: Source, table: PartitionTable) -> tuple[str, ...]:
    try:
        boot = find_boot_partition(source, table)
        return warn_of_half_edited(boot.open(source).edit_mark.before)
    except ImageError as error:
        if error.code in {"boot-partition-missing", "fat-invalid"}:
            return ()  # it has a block map all the same
        raise


def _left_out(source: Source, bmap: Bmap) -> int | None:
    """As `BmapCheck.left_out`; in a stream it would take a second pass to know."""
    if not source.seekable or source.size != bmap.image_size:
        return None
    try:
        return left_out_in_use(source, read_table(source), bmap)
    except ImageError as error:
        if error.code in {"table-missing", "table-invalid"}:
            return None
        raise


def _word_of_left_out(path: Path, size: int) -> str:
    return (
        f"{path}: leaves out {format_size(size)} that the image has in use: "
        "copied by it, files may hold what was on the medium before"
    )


def _beside(image: ImageLocation) -> Path:
    if not isinstance(image, Path):
        raise _refusal(
            "target-missing", f"{image}: has no place beside it for a block map", _NAME_ONE
        )
    name = image.name + _SUFFIX
    if len(os.fsencode(name)) > _NAME_MAX:
        raise _refusal(
            "target-name", f"{image}: its name is too long for a block map beside it", _NAME_ONE
        )
    return image.with_name(name)


def _require_place(place: Path, image: ImageLocation, *, overwrite: bool) -> None:
    """Refuse what must not become a block map."""
    found = find_type(place)
    if found is not None:
        if isinstance(image, Path) and find_type(image) is not None and place.samefile(image):
            raise _refusal("target-is-image", f"{place}: is the image itself")
        if found is not FileType.FILE:
            raise _refusal("target-not-a-file", f"{place}: is {found.value}", _NAME_ONE)
        if not overwrite:
            raise _refusal(
                "target-exists",
                f"{place}: is there already",
                "Name another file with -o, or add --overwrite.",
            )
    if find_type(place, follow_links=False) is FileType.LINK:
        hint = f"Name the file itself with -o: {shlex.quote(os.path.realpath(place))}"
        message = f"{place}: is a symbolic link, which is not followed"
        raise _refusal("target-is-link", message, hint)
    if place.parent.resolve().is_relative_to("/dev"):
        # Beside a block device.
        raise _refusal("target-not-a-file", f"{place}: /dev is not a place for files", _NAME_ONE)


def _write(place: Path, content: bytes, *, overwrite: bool, mode: int) -> None:
    """Make the file, which appears with all its content or not at all, also after a power loss."""
    with _refusals_of(place), open_folder(place.parent) as folder:
        with folder.new_file(place.name, mode=mode, replace=overwrite) as descriptor:
            write_all(descriptor, content)
            os.fsync(descriptor)
        folder.flush()


@contextmanager
def _refusals_of(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        code = "target-no-permission" if error.errno in _NOT_PERMITTED else "target-refused"
        raise _refusal(code, f"{place}: cannot be made: {error.strerror}") from error


_NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


def _refusal(code: str, message: str, hint: str | None = None) -> TargetRefusedError:
    return TargetRefusedError([Problem(code, message, hint)])
