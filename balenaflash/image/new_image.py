"""The table and the filesystems of a new image, made by the system's own programs.

Nothing here needs root: everything is a regular file. All identifiers are derived from names, so
that an image made twice at the same time is the same.
"""

import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.extent import KIB, SECTOR_SIZE, Extent
from balenaflash.image.programs import (
    DEBUGFS,
    MKFS_EXT4,
    MKFS_VFAT,
    SFDISK,
    failure,
    run_program,
)
from balenaflash.image.table.model import TableKind

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
