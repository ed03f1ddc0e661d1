"""A sample image: balenaOS's layout and files, without an operating system."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import BinaryIO, Literal

from balenaflash.boot import fingerprint, sample_files
from balenaflash.boot.files import make_directories, put_file
from balenaflash.boot.paths import parent_of
from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import KIB, MIB, Extent
from balenaflash.image.balenaos import FINGERPRINT_PATHS
from balenaflash.image.fat.time import time_of_edit
from balenaflash.image.fat.volume import FatVolume
from balenaflash.image.new_image import PROGRAMS, NewPartition, make_ext4, make_fat, write_table
from balenaflash.image.programs import require_programs
from balenaflash.image.source import open_source
from balenaflash.image.table.model import TableKind
from balenaflash.progress import Phase, Progress

_ALIGNMENT = 4 * MIB  # of every partition, and the gap before each logical one (meta-balena)
_BOOT_SIZE = 40 * MIB  # until balenaOS 7
_ROOT_SIZE = 24 * MIB
_STATE_SIZE = 20 * MIB
_DATA_SIZE = 32 * MIB
_BLOCK = 64 * KIB  # what is zero in one piece becomes a hole

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a tmpfs for files, shm_overview(7)

_REFUSALS = {
    errno.ENOENT: ("target-missing", "there is no directory {folder}"),
    errno.ENOTDIR: ("target-missing", "{folder} is no directory"),
    errno.EACCES: ("target-no-permission", "files may not be made in {folder}"),
    errno.EPERM: ("target-no-permission", "files may not be made in {folder}"),
    errno.EROFS: ("target-read-only", "the filesystem of {folder} is read-only"),
    errno.ENOSPC: ("target-too-small", "the filesystem of {folder} is full"),
    errno.EDQUOT: ("target-too-small", "the quota of its user in {folder} is used up"),
}
"""What keeps a file from being made, to code and words."""


@dataclass(frozen=True, slots=True)
class SampleReport:
    """An image that was made."""

    path: Path
    """As the user gave it."""

    size: int
    """In bytes; most of them are holes."""


def build_sample(
    out: Path,
    *,
    table: Literal["msdos", "gpt"],
    fat_bits: Literal[16, 32],
    progress: Progress,
    overwrite: bool = False,
) -> SampleReport:
    """Make a raw image at ``out``, without root; there is nothing there until it is complete.

    With ``SOURCE_DATE_EPOCH`` set, the same programs make the same bytes each time.

    Raises:
        ToolMissingError: a program it is made with is not installed.
        TargetRefusedError: ``out`` exists and ``overwrite`` is not set, or it cannot be made.
        ToolFailedError: a program failed.
        EditError: ``SOURCE_DATE_EPOCH`` is not a number.
    """
    kind = TableKind(table)
    partitions, size = _layout(kind, fat_bits)
    final = Path(os.path.realpath(out))
    with _refusals_of(out, final.parent):
        _require_place(out, final, overwrite=overwrite)
        require_programs(PROGRAMS)
        with tempfile.TemporaryDirectory(prefix=".balenaflash-", dir=final.parent) as folder:
            image = Path(folder, "image")
            with image.open("wb") as file:
                file.truncate(size)
            write_table(image, kind, partitions, name=f"{table}.fat{fat_bits}.sample")
            _fill(image, partitions, progress)
            # Whoever uses an older one at that path keeps it, and whoever opens it now has all.
            image.replace(final)
    return SampleReport(out, size)


def _layout(kind: TableKind, fat_bits: int) -> tuple[list[NewPartition], int]:
    """Where everything goes, and the size of the image (facts of meta-balena's image class)."""
    logical_gap = _ALIGNMENT if kind is TableKind.MSDOS else 0
    partitions: list[NewPartition] = []
    end = _ALIGNMENT

    def add(label: str, size: int, *, gap: int = 0, fat_bits: int | None = None) -> None:
        nonlocal end
        start = end + gap
        end = start + size
        partitions.append(NewPartition(label, Extent(start, end), fat_bits))

    add("resin-boot", _BOOT_SIZE, fat_bits=fat_bits)
    add("resin-rootA", _ROOT_SIZE)
    add("resin-rootB", _ROOT_SIZE)
    extended_start = end
    add("resin-state", _STATE_SIZE, gap=logical_gap)
    add("resin-data", _DATA_SIZE, gap=logical_gap)
    if kind is TableKind.MSDOS:
        partitions.insert(3, NewPartition(None, Extent(extended_start, end)))
        return partitions, end
    return partitions, end + _ALIGNMENT  # room for the backup table


def _fill(image: Path, partitions: list[NewPartition], progress: Progress) -> None:
    """Make each filesystem in a file of its own, and copy that into its partition."""
    epoch = _epoch()
    held = [each for each in partitions if each.label is not None]
    progress.begin(Phase.BUILD, sum(each.extent.size for each in held))
    try:
        with image.open("r+b") as file:
            for partition in held:
                volume = image.with_name(f"{partition.label}")
                if partition.fat_bits is not None:
                    make_fat(volume, partition, epoch=epoch)
                    _put_boot_files(volume)
                else:
                    root = sample_files.root_files() if partition.label == "resin-rootA" else {}
                    make_ext4(volume, partition, root, epoch=epoch)
                _copy(volume, file, partition.extent, progress)
                volume.unlink()
            file.flush()
            os.fsync(file.fileno())
    finally:
        progress.end()


def _put_boot_files(volume: Path) -> None:
    with open_source(volume) as source:
        fat = FatVolume.open(source, Extent(0, source.size))
        files = {FINGERPRINT_PATHS[0]: b"", **sample_files.boot_files()}
        for path, content in files.items():
            make_directories(fat, parent_of(path))
            put_file(fat, path, content)
        fingerprint.update(fat, ["/"])
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


def _require_place(out: Path, final: Path, *, overwrite: bool) -> None:
    """Refuse what is not, or must not become, a regular file; ``final`` has no links in it."""
    if final.exists() and not final.is_file():
        kind = "a directory" if final.is_dir() else "not a regular file"
        raise _refusal("target-not-a-file", f"{out}: is {kind}", "Name a file, there or new.")
    if final.is_relative_to("/dev") and not final.is_relative_to(_SHARED_MEMORY):
        # A node that is not there yet, or a misspelt one, must not become a file.
        raise _refusal("target-not-a-file", f"{out}: /dev is not a place for files")
    if final.exists() and not overwrite:
        raise _refusal(
            "target-exists", f"{out}: is there already", "Name another file, or add --overwrite."
        )


@contextmanager
def _refusals_of(out: Path, folder: Path) -> Iterator[None]:
    """Turn what the system has against a file in ``folder`` into a refusal of ``out``."""
    try:
        yield
    except OSError as error:
        code, words = _REFUSALS.get(error.errno or 0, ("target-refused", f"{error.strerror}"))
        raise _refusal(code, f"{out}: cannot be made: {words.format(folder=folder)}") from error


def _refusal(code: str, message: str, hint: str | None = None) -> TargetRefusedError:
    return TargetRefusedError([Problem(code, message, hint)])
