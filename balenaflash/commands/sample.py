"""A sample image: balenaOS's layout and files, without an operating system.

Nothing here needs root: everything is a regular file. All identifiers are derived from names, so
an image made twice at the same time is the same.
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
from balenaflash.edits.files import make_directories, parent_of, put_file
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
from balenaflash.progress import Phase, Progress, phase
from balenaflash.source.base import open_source
from balenaflash.source.undo_record import forget_record
from balenaflash.targets.file import new_path
from balenaflash.units import KIB, MIB, SECTOR_SIZE, Extent

PROGRAMS = (SFDISK, MKFS_VFAT, MKFS_EXT4, DEBUGFS)
"""All programs that are run here."""

_EFI_SYSTEM = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"  # UEFI 2.10, table 5.7
_LINUX_DATA = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"  # Discoverable Partitions Specification
_MBR_FAT16_LBA, _MBR_FAT32_LBA, _MBR_EXTENDED_LBA, _MBR_LINUX = "e", "c", "f", "83"


@dataclass(frozen=True, slots=True)
class NewPartition:
    """A partition of the sample."""

    label: str | None
    """Name in a GPT, and label of its filesystem; ``None`` for an extended partition."""

    extent: Extent
    """Its bytes in the image; multiples of a sector."""

    fat_bits: int | None = None
    """16 or 32 for the boot partition; ``None`` for any other."""

    files: Mapping[str, bytes | Path] | None = None
    """Files of its ext4 filesystem, by absolute path; ``None`` if it has none."""


def write_table(
    path: Path, kind: TableKind, partitions: Sequence[NewPartition], *, name: str
) -> None:
    """Write a partition table to the file at ``path``, which has its full size already.

    The identifiers are derived from ``name``. The first partition is the boot partition.
    """
    script = "\n".join(_table_lines(kind, partitions, name))
    # Nothing is wiped: the file is new.
    run_program(SFDISK, "--quiet", "--wipe=never", path.name, folder=path.parent, stdin=script)


def make_fat(path: Path, partition: NewPartition, *, epoch: int | None) -> None:
    """Make the file at ``path`` an empty FAT volume, with the options that balenaOS uses."""
    arguments = ["-F", f"{partition.fat_bits}", "-S", f"{SECTOR_SIZE}", "-n", f"{partition.label}"]
    volume_id = f"{identifier(f'{partition.label}').fields[0]:08x}"
    if epoch is not None:
        # dosfstools 4.2 gives the label the time of day, even with SOURCE_DATE_EPOCH.
        arguments.append("--invariant")
    size = f"{partition.extent.size // KIB}"
    run_program(
        MKFS_VFAT,
        *(*arguments, "-i", volume_id, "-C", path.name, size),
        folder=path.parent,
        epoch=epoch,
    )


def make_ext4(path: Path, partition: NewPartition, *, epoch: int | None) -> None:
    """Make the file at ``path`` an ext4 filesystem that holds the files of ``partition``.

    Everything in it belongs to root, whichever user runs this. A file that is given by its path
    must lie beside ``path``, and is moved; its holes stay holes.
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
    if partition.files:
        _copy_in(path, partition.files, epoch)


def identifier(name: str) -> uuid.UUID:
    """The UUID derived from ``name``."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.balenaflash")


def _copy_in(path: Path, files: Mapping[str, bytes | Path], epoch: int | None) -> None:
    """Fill an ext4 filesystem without mounting it.

    debugfs does it, and not ``mkfs.ext4 -d``, which copies the user's ids and the time each file
    was made here, so that no two images would be the same.
    """
    parents = {str(parent) for name in files for parent in Path(name).parents}
    script = [f"mkdir {directory}" for directory in sorted(parents - {"/"})]
    with tempfile.TemporaryDirectory(prefix="staged-", dir=path.parent) as folder:
        staged = Path(folder)
        for number, (name, content) in enumerate(files.items()):
            _stage(content, staged / str(number))
            script.append(f"write {staged.name}/{number} {name}")
        commands = "\n".join(script) + "\n"
        done = run_program(
            *(DEBUGFS, "-w", "-f", "-", path.name), folder=path.parent, stdin=commands, epoch=epoch
        )
    # Its status is 0 even after an error; otherwise standard error has only its version.
    if len(done.stderr.splitlines()) > 1:
        raise failure(DEBUGFS, "an error", done.stderr)


def _stage(content: bytes | Path, place: Path) -> None:
    if isinstance(content, Path):
        content.replace(place)
    else:
        place.write_bytes(content)
    place.chmod(0o644)


def _table_lines(kind: TableKind, partitions: Sequence[NewPartition], name: str) -> Iterator[str]:
    """Lines of sfdisk(8)."""
    unique = identifier(name)
    if kind is TableKind.GPT:
        yield from ("label: gpt", f"label-id: {unique}", "unit: sectors")
    else:
        yield from ("label: dos", f"label-id: 0x{unique.fields[0]:08x}", "unit: sectors")
    for number, partition in enumerate(partitions, 1):
        extent = partition.extent
        place = f"start={extent.start // SECTOR_SIZE}, size={extent.size // SECTOR_SIZE}"
        if kind is TableKind.GPT:
            type_id = _EFI_SYSTEM if number == 1 else _LINUX_DATA
            unique = identifier(f"{number}.{name}")
            yield f"{place}, type={type_id}, uuid={unique}, name={partition.label}"
        else:
            boot = ", bootable" if number == 1 else ""
            yield f"{place}, type={_msdos_type(partition)}{boot}"


def _msdos_type(partition: NewPartition) -> str:
    if partition.label is None:
        return _MBR_EXTENDED_LBA
    return {16: _MBR_FAT16_LBA, 32: _MBR_FAT32_LBA}.get(partition.fat_bits or 0, _MBR_LINUX)


_ALIGNMENT = 4 * MIB  # of every partition, and the gap before each logical one (meta-balena)
_LOGICAL = frozenset({"state", "data"})  # the last two, logical ones on msdos
_BOOT_SIZE = 40  # MiB, until balenaOS 7
_BLOCK = 64 * KIB  # a block of zeros becomes a hole


@dataclass(frozen=True, slots=True)
class SampleReport:
    """A sample image that was made."""

    path: Path
    size: int
    """Bytes from start to end; most of them are holes."""


@dataclass(frozen=True, slots=True)
class _Design:
    """The contents of a sample."""

    prefix: str
    """Start of every label."""

    sizes: Mapping[str, int]
    """Sizes of the partitions in MiB, by the rest of their labels."""

    boot_files: Mapping[str, bytes]
    files: Mapping[str, Mapping[str, bytes | Path]]
    """Files of the ext4 filesystems, by the rest of the label; other partitions have none."""


def _raw_design() -> _Design:
    return _Design(
        prefix="resin",
        sizes={"boot": _BOOT_SIZE, "rootA": 24, "rootB": 24, "state": 20, "data": 32},
        boot_files=sample_files.boot_files(),
        files={"rootA": sample_files.root_files(), "rootB": {}, "state": {}, "data": {}},
    )


def _flasher_design(inner: Path) -> _Design:
    """A flasher that carries ``inner``, which is moved."""
    carried = {f"/opt/{sample_files.INNER_NAME}": inner}
    return _Design(
        prefix="flash",
        sizes={"boot": _BOOT_SIZE, "rootA": 48, "rootB": 4, "state": 4, "data": 4},
        boot_files=sample_files.flasher_boot_files(),
        files={"rootA": {**sample_files.flasher_root_files(), **carried}, "rootB": {}},
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
    """Make an image at ``out``, without root; ``out`` appears when it is complete.

    It is a raw image, or with ``flasher`` a flasher that carries one. With ``SOURCE_DATE_EPOCH``
    set, the same programs make the same bytes each time.

    Raises:
        ToolMissingError: a program that is needed is not installed.
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
            design, name = _flasher_design(inner), f"flasher.{name}"
        else:
            design = _raw_design()
        size = _build(image, design, kind, fat_bits, name, progress)
    forget_record(out)
    return SampleReport(out, size)


def _build(
    image: Path, design: _Design, kind: TableKind, fat_bits: int, name: str, progress: Progress
) -> int:
    """Make the image in the new file ``image``, and return its size."""
    partitions, size = _layout(design, kind, fat_bits)
    with image.open("wb") as file:
        file.truncate(size)
    write_table(image, kind, partitions, name=name)
    _fill(image, design, partitions, progress)
    return size


def _layout(design: _Design, kind: TableKind, fat_bits: int) -> tuple[list[NewPartition], int]:
    """The partitions, and the size of the image (facts of meta-balena's image class)."""
    logical_gap = _ALIGNMENT if kind is TableKind.MSDOS else 0
    partitions: list[NewPartition] = []
    end = _ALIGNMENT
    for name, size in design.sizes.items():
        start = end + (logical_gap if name in _LOGICAL else 0)
        end = start + size * MIB
        bits = fat_bits if name == "boot" else None
        files = design.files.get(name)
        label = f"{design.prefix}-{name}"
        partitions.append(NewPartition(label, Extent(start, end), bits, files))
    if kind is TableKind.GPT:
        return partitions, end + _ALIGNMENT  # room for the backup table
    extended = Extent(partitions[2].extent.end, end)
    partitions.insert(3, NewPartition(None, extended))
    return partitions, end


def _fill(image: Path, design: _Design, partitions: list[NewPartition], progress: Progress) -> None:
    """Make each filesystem in a file of its own, and copy that into its partition."""
    epoch = _epoch()
    held = [each for each in partitions if each.fat_bits or each.files is not None]
    size = sum(each.extent.size for each in held)
    with phase(progress, Phase.BUILD, size), image.open("r+b") as file:
        for partition in held:
            volume = image.with_name(f"{partition.label}")
            if partition.fat_bits is not None:
                make_fat(volume, partition, epoch=epoch)
                _put_boot_files(volume, design.boot_files)
            else:
                make_ext4(volume, partition, epoch=epoch)
            _copy(volume, file, partition.extent, progress)
            volume.unlink()
        file.flush()
        os.fsync(file.fileno())


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
    """Copy a filesystem into its partition; blocks of zeros stay holes."""
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
    """Time of all files, in seconds since 1970; ``None`` for now."""
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        return None
    return int(time_of_edit().replace(tzinfo=UTC).timestamp())
