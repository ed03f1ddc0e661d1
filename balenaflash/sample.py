"""A sample image: balenaOS's layout and files, without an operating system."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import BinaryIO, Literal

from balenaflash.boot import fingerprint, sample_files
from balenaflash.boot.files import make_directories, put_file
from balenaflash.boot.paths import parent_of
from balenaflash.extent import KIB, MIB, Extent
from balenaflash.image.commit.undo import forget_record
from balenaflash.image.fat.time import time_of_edit
from balenaflash.image.fat.volume import FatVolume
from balenaflash.image.new_image import PROGRAMS, NewPartition, make_ext4, make_fat, write_table
from balenaflash.image.programs import require_programs
from balenaflash.image.source import open_source
from balenaflash.image.table.model import TableKind
from balenaflash.progress import Phase, Progress
from balenaflash.target.new_file import new_path

_ALIGNMENT = 4 * MIB  # of every partition, and the gap before each logical one (meta-balena)
_BLOCK = 64 * KIB  # what is zero in one piece becomes a hole


@dataclass(frozen=True, slots=True)
class SampleReport:
    """An image that was made."""

    path: Path
    """As the user gave it."""

    size: int
    """In bytes; most of them are holes."""


@dataclass(frozen=True, slots=True)
class _Design:
    """What is in an image; sizes in bytes."""

    prefix: str
    """Of the labels."""

    root_size: int
    spare_size: int
    """Of the second root filesystem, which is empty."""

    state_size: int
    data_size: int
    boot_files: Mapping[str, bytes]
    root_files: Mapping[str, bytes | Path]

    has_state: bool = True
    """Whether there are filesystems in the last two partitions."""

    boot_size: int = 40 * MIB  # until balenaOS 7


def _raw_design() -> _Design:
    return _Design(
        prefix="resin",
        root_size=24 * MIB,
        spare_size=24 * MIB,
        state_size=20 * MIB,
        data_size=32 * MIB,
        boot_files=sample_files.boot_files(),
        root_files=sample_files.root_files(),
    )


def _flasher_design(inner: Path) -> _Design:
    """A flasher that carries ``inner``, which is used up."""
    carried = {f"/opt/{sample_files.INNER_NAME}": inner}
    return _Design(
        prefix="flash",
        root_size=48 * MIB,
        spare_size=_ALIGNMENT,
        state_size=_ALIGNMENT,
        data_size=_ALIGNMENT,
        boot_files=sample_files.flasher_boot_files(),
        root_files={**sample_files.flasher_root_files(), **carried},
        has_state=False,
    )


def build_sample(
    out: Path,
    *,
    table: Literal["msdos", "gpt"],
    fat_bits: Literal[16, 32],
    progress: Progress,
    flasher: bool = False,
    overwrite: bool = False,
) -> SampleReport:
    """Make an image at ``out``, without root; there is nothing there until it is complete.

    It is a raw one, or with ``flasher`` one that carries that. With ``SOURCE_DATE_EPOCH`` set,
    the same programs make the same bytes each time.

    Raises:
        ToolMissingError: a program it is made with is not installed.
        TargetRefusedError: ``out`` exists and ``overwrite`` is not set, or it cannot be made.
        ToolFailedError: a program failed.
        EditError: ``SOURCE_DATE_EPOCH`` is not a number.
    """
    kind = TableKind(table)
    name = f"{table}.fat{fat_bits}.sample"
    with new_path(out, overwrite=overwrite) as image:
        require_programs(PROGRAMS)
        if flasher:
            inner = image.with_name("inner")
            _build(inner, _raw_design(), kind, fat_bits, name, progress)
            size = _build(
                image, _flasher_design(inner), kind, fat_bits, f"flasher.{name}", progress
            )
        else:
            size = _build(image, _raw_design(), kind, fat_bits, name, progress)
    forget_record(out)
    return SampleReport(out, size)


def _build(
    image: Path, design: _Design, kind: TableKind, fat_bits: int, name: str, progress: Progress
) -> int:
    """Make the image in the new file ``image``; its size."""
    partitions, size = _layout(design, kind, fat_bits)
    with image.open("wb") as file:
        file.truncate(size)
    write_table(image, kind, partitions, name=name)
    _fill(image, design, partitions, progress)
    return size


def _layout(design: _Design, kind: TableKind, fat_bits: int) -> tuple[list[NewPartition], int]:
    """Where everything goes, and the size of the image (facts of meta-balena's image class)."""
    logical_gap = _ALIGNMENT if kind is TableKind.MSDOS else 0
    partitions: list[NewPartition] = []
    end = _ALIGNMENT

    def add(name: str, size: int, *, gap: int = 0, bits: int | None = None) -> None:
        nonlocal end
        start = end + gap
        end = start + size
        label = f"{design.prefix}-{name}"
        is_empty = name in {"state", "data"} and not design.has_state
        partitions.append(NewPartition(label, Extent(start, end), bits, is_empty=is_empty))

    add("boot", design.boot_size, bits=fat_bits)
    add("rootA", design.root_size)
    add("rootB", design.spare_size)
    extended_start = end
    add("state", design.state_size, gap=logical_gap)
    add("data", design.data_size, gap=logical_gap)
    if kind is TableKind.MSDOS:
        partitions.insert(3, NewPartition(None, Extent(extended_start, end)))
        return partitions, end
    return partitions, end + _ALIGNMENT  # room for the backup table


def _fill(image: Path, design: _Design, partitions: list[NewPartition], progress: Progress) -> None:
    """Make each filesystem in a file of its own, and copy that into its partition."""
    epoch = _epoch()
    held = [each for each in partitions if each.label is not None and not each.is_empty]
    progress.begin(Phase.BUILD, sum(each.extent.size for each in held))
    try:
        with image.open("r+b") as file:
            for partition in held:
                volume = image.with_name(f"{partition.label}")
                if partition.fat_bits is not None:
                    make_fat(volume, partition, epoch=epoch)
                    _put_boot_files(volume, design.boot_files)
                else:
                    is_root = partition.label == f"{design.prefix}-rootA"
                    files = design.root_files if is_root else {}
                    make_ext4(volume, partition, files, epoch=epoch)
                _copy(volume, file, partition.extent, progress)
                volume.unlink()
            file.flush()
            os.fsync(file.fileno())
    finally:
        progress.end()


def _put_boot_files(volume: Path, boot_files: Mapping[str, bytes]) -> None:
    with open_source(volume) as source:
        fat = FatVolume.open(source, Extent(0, source.size))
        for path, content in boot_files.items():
            make_directories(fat, parent_of(path))
            put_file(fat, path, content)
        fingerprint.build(fat)
        changes = fat.changes()
    with volume.open("r+b") as file:
        for patch in changes:
            file.seek(patch.offset)
            file.write(patch.data)


def _copy(volume: Path, image: BinaryIO, extent: Extent, progress: Progress) -> None:
    """Copy a filesystem into its partition; zeros stay the hole that is there."""
    zeros = bytes(_BLOCK)
    image.seek(extent.start)
    with volume.open("rb") as file:
        while block := file.read(_BLOCK):
            if block == zeros[: len(block)]:
                image.seek(len(block), os.SEEK_CUR)
            else:
                image.write(block)
            progress.advance(len(block))


def _epoch() -> int | None:
    """Seconds since 1970 that the image is to be made at; ``None`` for now."""
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        return None
    return int(time_of_edit().replace(tzinfo=UTC).timestamp())
