"""A sample image: balenaOS's layout and files, without an operating system.

Nothing here needs root: everything is a regular file. All identifiers are derived from names, so
that an image made twice at the same time is the same.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import BinaryIO, Literal

from balenaflash.commands import sample_files
from balenaflash.edits import fingerprint
from balenaflash.edits.files import make_directories, put_file
from balenaflash.edits.paths import parent_of
from balenaflash.formats.fat.names import time_of_edit
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.partitions.model import TableKind
from balenaflash.programs import (
    DEBUGFS,
    MKFS_EXT4,
    MKFS_VFAT,
    SFDISK,
    failure,
    require_programs,
    run_program,
)
from balenaflash.progress import Phase, Progress
from balenaflash.source.base import open_source
from balenaflash.source.undo import forget_record
from balenaflash.targets.file import new_path
from balenaflash.units import KIB, MIB, SECTOR_SIZE, Extent

PROGRAMS = (SFDISK, MKFS_VFAT, MKFS_EXT4, DEBUGFS)
"""All that the functions below run."""

_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # UEFI 2.10, table 5.7
_LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"  # Discoverable Partitions Specification
_MBR_FAT16_LBA, _MBR_FAT32_LBA, _MBR_EXTENDED_LBA, _MBR_LINUX = "e", "c", "f", "83"


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A partition to be made."""

    label: str | None
    """Name on GPT, and label of its filesystem; ``None`` for an extended partition."""

    extent: Extent
    """In the image; multiples of a sector."""

    fat_bits: int | None = None
    """16 or 32 for the boot partition; ``None`` for one that holds ext4."""

    is_empty: bool = False
    """Whether it holds no filesystem at all."""


def write_table(
    path: Path, kind: TableKind, partitions: Sequence[NewPartition], *, name: str
) -> None:
    """Write a partition table to the file at ``path``, which has its full size already.

    The identifiers come from ``name``. The first partition is the one to boot from.
    """
    lines = _gpt_lines if kind is TableKind.GPT else _msdos_lines
    script = "\n".join([*_header(kind, name), *lines(partitions, name)])
    # Nothing is wiped: the file is new.
    run_program(SFDISK, "--quiet", "--wipe=never", path.name, folder=path.parent, stdin=script)


def make_fat(path: Path, partition: NewPartition, *, epoch: int | None) -> None:
    """Make the file at ``path`` an empty FAT volume, by the options that balenaOS uses."""
    arguments = ["-F", f"{partition.fat_bits}", "-S", f"{SECTOR_SIZE}", "-n", f"{partition.label}"]
    volume_id = f"{identifier(f'{partition.label}').fields[0]:08x}"
    if epoch is not None:
        # dosfstools 4.2 gives the label the time of day, whatever SOURCE_DATE_EPOCH says.
        arguments.append("--invariant")
    size = f"{partition.extent.size // KIB}"
    run_program(
        MKFS_VFAT,
        *(*arguments, "-i", volume_id, "-C", path.name, size),
        folder=path.parent,
        epoch=epoch,
    )


def make_ext4(
    path: Path, partition: NewPartition, files: Mapping[str, bytes | Path], *, epoch: int | None
) -> None:
    """Make the file at ``path`` an ext4 filesystem that holds ``files``, by absolute path.

    Everything in it belongs to root, whoever runs this. Content is bytes, or a file beside
    ``path``, which is used up; its holes stay holes.
    """
    unique = str(identifier(f"{partition.label}"))
    extended = f"lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed={unique}"
    run_program(
        MKFS_EXT4,
        *("-q", "-F", "-L", f"{partition.label}", "-U", unique, "-E", extended),
        *(path.name, f"{partition.extent.size // KIB}k"),
        folder=path.parent,
        epoch=epoch,
    )
    if files:
        _copy_in(path, files, epoch)


def identifier(name: str) -> uuid.UUID:
    """The UUID that stands for ``name``."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.balenaflash")


def _copy_in(path: Path, files: Mapping[str, bytes | Path], epoch: int | None) -> None:
    """Fill an ext4 filesystem without mounting it.

    By debugfs and not by ``mkfs.ext4 -d``, which takes over the user's ids and the time each
    file was made here, so that no two images would be the same.
    """
    script = [f"mkdir {directory}" for directory in _directories(files)]
    with tempfile.TemporaryDirectory(prefix="staged-", dir=path.parent) as folder:
        staged = Path(folder)
        for number, (name, content) in enumerate(files.items()):
            _stage(content, staged / str(number))
            script.append(f"write {staged.name}/{number} {name}")
        commands = "\n".join(script) + "\n"
        done = run_program(
            *(DEBUGFS, "-w", "-f", "-", path.name), folder=path.parent, stdin=commands, epoch=epoch
        )
    # Its status is 0 whatever happened; standard error holds its version and nothing else.
    if len(done.stderr.splitlines()) > 1:
        raise failure(DEBUGFS, "an error", done.stderr)


def _stage(content: bytes | Path, place: Path) -> None:
    if isinstance(content, Path):
        content.replace(place)
    else:
        place.write_bytes(content)
    place.chmod(0o644)


def _directories(files: Mapping[str, bytes | Path]) -> list[str]:
    """Every directory that ``files`` lie in but the root, parents first."""
    parents = {str(parent) for name in files for parent in Path(name).parents}
    return sorted(parents - {"/"})


def _header(kind: TableKind, name: str) -> list[str]:
    unique = identifier(name)
    if kind is TableKind.GPT:
        return ["label: gpt", f"label-id: {unique}", "unit: sectors"]
    return ["label: dos", f"label-id: 0x{unique.fields[0]:08x}", "unit: sectors"]


def _gpt_lines(partitions: Sequence[NewPartition], name: str) -> Iterator[str]:
    for number, partition in enumerate(partitions, 1):
        kind = _EFI_SYSTEM if number == 1 else _LINUX_DATA
        unique = identifier(f"{number}.{name}")
        yield f"{_place(partition)}, type={kind}, uuid={unique}, name={partition.label}"


def _msdos_lines(partitions: Sequence[NewPartition], _name: str) -> Iterator[str]:
    for number, partition in enumerate(partitions, 1):
        boot = ", bootable" if number == 1 else ""
        yield f"{_place(partition)}, type={_msdos_type(partition)}{boot}"


def _msdos_type(partition: NewPartition) -> str:
    if partition.label is None:
        return _MBR_EXTENDED_LBA
    return {16: _MBR_FAT16_LBA, 32: _MBR_FAT32_LBA}.get(partition.fat_bits or 0, _MBR_LINUX)


def _place(partition: NewPartition) -> str:
    extent = partition.extent
    return f"start={extent.start // SECTOR_SIZE}, size={extent.size // SECTOR_SIZE}"


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
