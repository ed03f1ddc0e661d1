"""Partition tables of images, read by our own code and by libparted; the only home of pyparted.

libparted does not report type GUIDs, UUIDs, a damaged copy of a GPT, or a truncated image
(libparted 3.5). So the table is read here first. It is also checked here before libparted reads
it, because a failed assertion of libparted ends the process.

libparted opens its device for writing, tries to open paths that start with the same name
(``image1`` to ``image63``), and keeps devices by path until the process ends. So it never sees an
image, but a stand-in in memory: as long as the image, with only the sectors of the table. Each
stand-in has its own path, so that a device kept by libparted is never used again.
``device_free_all`` is never called: it frees memory that Python objects still use
(pyparted 3.13.0).
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

from balenaflash.errors import ImageError
from balenaflash.formats import filesystems
from balenaflash.formats.partitions import mbr
from balenaflash.formats.partitions.gpt import read_gpt
from balenaflash.formats.partitions.mbr import find_protective, read_entries, read_mbr
from balenaflash.formats.partitions.model import (
    Partition,
    PartitionKind,
    PartitionTable,
    TableKind,
    TableReading,
    invalid_table,
)
from balenaflash.source.base import Source
from balenaflash.source.container.recognise import refuse_foreign, refuse_iso
from balenaflash.units import MIB, SECTOR_SIZE, Extent

_START_SIZE = MIB  # bytes at the start of an image; they contain every known signature


def read_table_sectors(source: Source) -> TableReading:
    """The partition table of an image, without libparted's flags, and its sectors.

    Raises:
        ImageError: there is no table (``table-missing``), it contradicts itself
            (``table-invalid``), the image is shorter than the table requires
            (``image-truncated``), or it is not a disk image (``image-foreign``).
    """
    if source.size is not None and source.size < SECTOR_SIZE:
        raise _missing(source)
    sector = source.read(0, SECTOR_SIZE)
    if find_protective(sector) is not None:
        reading = read_gpt(source, sector)
    else:
        entries, whole = read_entries(sector), _recognise_whole(source)
        if entries is None or (not entries and whole is not None):
            raise _missing(source)
        reading = read_mbr(source, sector, entries)
        if whole is not None and whole.type == "vfat":
            warning = (
                "The boot record is also the boot sector of a FAT: Linux reads its partitions, "
                "but blkid and parted see one filesystem."
            )
            table = replace(reading.table, warnings=(*reading.table.warnings, warning))
            reading = replace(reading, table=table)
    _refuse_overlaps(source, reading)
    return reading


def _missing(source: Source) -> ImageError:
    refuse_foreign(source)
    whole = _recognise_whole(source)
    fact = "contains no partition table"
    if whole is not None:
        fact = f"is one {whole.type} filesystem, without a partition table"
    return ImageError(
        f"{source.name}: {fact}",
        code="table-missing",
        hint="A raw balenaOS image starts with an msdos partition table or a GPT.",
    )


def _recognise_whole(source: Source) -> filesystems.Filesystem | None:
    """A filesystem at the start of the image; only its first MiB is read."""
    size = _START_SIZE if source.size is None else min(source.size, _START_SIZE)
    return filesystems.recognise_filesystem(source, Extent(0, size))


def _refuse_overlaps(source: Source, reading: TableReading) -> None:
    """Raise if a byte belongs to two partitions, or to a partition and to the table."""
    extended = [
        each.extent for each in reading.table.partitions if each.kind is PartitionKind.EXTENDED
    ]
    records = [(run.extent, "the partition table") for run in reading.sectors]
    # Extended boot records lie inside the extended partition, between the logical ones.
    inner = [each for each in records if any(area.encloses(each[0]) for area in extended)]
    outer = [each for each in records if each not in inner]
    for partition in reading.table.partitions:
        listed = inner if partition.kind is PartitionKind.LOGICAL else outer
        listed.append((partition.extent, f"partition {partition.number}"))
    for areas in (sorted(outer), sorted(inner)):
        for (one, its_name), (other, other_name) in pairwise(areas):
            if one.overlaps(other):
                raise invalid_table(source, f"{its_name} and {other_name} overlap")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment in the block, and restore it afterwards."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# On loading, libparted runs ``sh -c "dmidecode ..."`` to recognise an Apple machine (libparted 3.5,
# labels/gpt.c). On this path it finds no program.
with _environment("PATH", "/nonexistent"):
    import _ped
    import parted

__all__ = ["Partition", "PartitionKind", "PartitionTable", "TableKind", "read_table"]

LIBPARTED_ERRORS: tuple[type[Exception], ...] = (
    _ped.AlignmentException,
    _ped.ConstraintException,
    _ped.CreateException,
    _ped.DeviceException,
    _ped.DiskException,
    _ped.DiskLabelException,
    _ped.FileSystemException,
    _ped.GeometryException,
    _ped.IOException,
    _ped.NotNeededException,
    _ped.PartedException,
    _ped.PartitionException,
    _ped.TimerException,
    _ped.UnknownDeviceException,
    _ped.UnknownTypeException,
)
"""All exceptions of pyparted; the classes have no common base of their own."""

_MAX_NUMBER = 64  # of a partition on msdos in libparted (MAX_TOTAL_PART in dos.c)
_SECTOR_SIZE_VARIABLE = "PARTED_SECTOR_SIZE"  # libparted/arch/linux.c, read when a file is opened
_numbers = itertools.count()

_GO_ON_BROKEN = _ped.EXCEPTION_RESOLVE_IGNORE | _ped.EXCEPTION_RESOLVE_CANCEL
"""The choices of a question where "ignore" leads libparted into its own assertions."""

_HARMLESS_ANSWERS = (
    _ped.EXCEPTION_RESOLVE_IGNORE,
    _ped.EXCEPTION_RESOLVE_OK,
    _ped.EXCEPTION_RESOLVE_NO,
)
"""Answers by preference, with which libparted reads on and repairs nothing."""


def libparted_version() -> str:
    """Version of the C library that pyparted was built against."""
    return str(parted.version()["libparted"])


def read_table(source: Source) -> PartitionTable:
    """The partition table of an image, which is only read.

    Not thread-safe: libparted's message handler and sector size belong to the whole process.

    Raises:
        ImageError: there is no table (``table-missing``), it is invalid or libparted reads it
            differently (``table-invalid``), or the image is shorter than the table requires
            (``image-truncated``).
    """
    refuse_iso(source)
    reading = read_table_sectors(source)
    seen = _read_with_libparted(source, reading)
    difference = _find_difference(reading.table, seen)
    if difference is not None:
        said = f" (libparted: {'; '.join(seen.messages)})" if seen.messages else ""
        raise invalid_table(source, f"its partition table is ambiguous: {difference}{said}")
    flags = {each.number: each.flags for each in seen.partitions}
    partitions = tuple(
        replace(partition, flags=flags.get(partition.number, ()))
        for partition in reading.table.partitions
    )
    # Our own warnings say the same as libparted's messages, in terms of the image.
    warnings = reading.table.warnings or tuple(f"libparted: {text}" for text in seen.messages)
    return replace(reading.table, partitions=partitions, warnings=warnings)


@dataclass(frozen=True, slots=True)
class _Seen:
    """The table as libparted reads it, copied out of its objects."""

    kind: str
    partitions: tuple[Partition, ...]
    messages: tuple[str, ...]


def _find_difference(ours: PartitionTable, seen: _Seen) -> str | None:
    """The first difference between the two readings, in words; ``None`` if there is none."""
    if ours.kind != seen.kind:
        return f"as {ours.kind}, and by libparted as {seen.kind}"
    mine = {each.number: each for each in ours.partitions}
    theirs = {each.number: each for each in seen.partitions}
    for number in sorted(mine.keys() | theirs.keys()):
        if number not in theirs:
            if number > _MAX_NUMBER and ours.kind is TableKind.MSDOS:
                continue
            return f"libparted does not see partition {number}"
        if number not in mine:
            return f"libparted sees a partition {number} that is not in the table"
        one, other = mine[number], theirs[number]
        if one.extent != other.extent:
            return (
                f"partition {number} has bytes {one.extent.start} to {one.extent.end}, "
                f"and for libparted {other.extent.start} to {other.extent.end}"
            )
        if one.kind is not other.kind:
            return f"partition {number} is {one.kind}, and for libparted {other.kind}"
    return None


def _read_with_libparted(source: Source, reading: TableReading) -> _Seen:
    messages = list[str]()
    with (
        _errors_mapped(source, messages),
        _messages_collected(messages),
        _stand_in(source, reading) as path,
    ):
        disk = parted.newDisk(parted.getDevice(path))
        partitions = [_copy(each, reading.table.sector_size) for each in disk.partitions]
        kind = str(disk.type)
    partitions.sort(key=lambda partition: partition.number)
    texts = tuple(" ".join(text.replace(path, source.name).split()) for text in messages)
    return _Seen(kind, tuple(partitions), texts)


def _copy(partition: "parted.Partition", sector_size: int) -> Partition:
    """The numbers of a libparted partition, so that no object of the library lives on.

    Type, name and UUID are omitted: libparted 3.5 does not report them all, and recodes names.
    """
    geometry, bits = partition.geometry, int(partition.type)
    kind = PartitionKind.LOGICAL if bits & parted.PARTITION_LOGICAL else PartitionKind.PRIMARY
    return Partition(
        number=int(partition.number),
        extent=Extent.from_lba(
            int(geometry.start),
            int(geometry.start) + int(geometry.length) - 1,
            sector_size=sector_size,
        ),
        kind=PartitionKind.EXTENDED if bits & parted.PARTITION_EXTENDED else kind,
        type_id="",
        name=None,
        uuid=None,
        flags=tuple(sorted(filter(None, str(partition.getFlagsAsString()).split(", ")))),
    )


@contextmanager
def _stand_in(source: Source, reading: TableReading) -> Iterator[str]:
    """Path of the stand-in for libparted, which may write it; it lies in no directory.

    libparted also tries the path with ``p`` and digits after it (3.5, libparted/arch/linux.c), as
    the path ends in a digit. So it cannot open another open file of this process.
    """
    sector_size = reading.table.sector_size
    descriptor = os.memfd_create("table", os.MFD_CLOEXEC)
    try:
        shown = tuple(_shown(reading))
        ends = (offset + len(data) for offset, data in shown)
        os.truncate(descriptor, max(source.size or reading.table.end, *ends))
        for offset, data in shown:
            os.pwrite(descriptor, data, offset)
        # A new path to the file each time.
        steps = f"{next(_numbers):032b}".replace("0", "/").replace("1", "./")
        with _environment(_SECTOR_SIZE_VARIABLE, str(sector_size)):
            yield f"/proc/self/{steps}fd/{descriptor}"
    finally:
        os.close(descriptor)


def _shown(reading: TableReading) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each piece of the stand-in."""
    if reading.table.kind is TableKind.GPT:
        record, *copies = reading.sectors
        yield record.offset, mbr.plain_protection(record.data)
        for run in reading.made_up or copies:
            yield run.offset, run.data
        return
    if not reading.table.is_complete:
        for partition in reading.table.partitions:
            if partition.kind is PartitionKind.EXTENDED:
                yield partition.extent.start, mbr.EMPTY_RECORD
    for run in reading.made_up or reading.sectors:
        # libparted follows links of no sectors, and guesses a geometry from cylinders and
        # heads; both may end the process if the values are odd (libparted 3.5).
        yield run.offset, mbr.canonical_record(run.data)


@contextmanager
def _messages_collected(messages: list[str]) -> Iterator[None]:
    """Append libparted's messages to ``messages``, and give its questions a fixed answer."""

    def answer(_severity: int, options: int, message: str) -> int:
        messages.append(message)
        if options == _GO_ON_BROKEN:
            return int(_ped.EXCEPTION_RESOLVE_CANCEL)
        for choice in _HARMLESS_ANSWERS:
            if options & choice:
                return int(choice)
        return int(_ped.EXCEPTION_RESOLVE_CANCEL)

    _ped.register_exn_handler(answer)
    try:
        yield
    finally:
        _ped.clear_exn_handler()


@contextmanager
def _errors_mapped(source: Source, messages: list[str]) -> Iterator[None]:
    """Turn exceptions of libparted into ``ImageError``, with its last message."""
    try:
        yield
    except NotImplementedError as error:
        # pyparted raises it for a disk label of AIX (_pedmodule.c, 3.13.0).
        raise invalid_table(
            source, f"libparted takes its partition table for another kind: {error}"
        ) from error
    except LIBPARTED_ERRORS as error:
        told = " ".join((messages[-1] if messages else str(error)).split())
        raise ImageError(
            f"{source.name}: libparted cannot read its partition table: {told}",
            code="table-invalid",
        ) from error
    except OSError as error:
        raise ImageError(
            f"{source.name}: its partition table cannot be copied: {error.strerror}",
            code="table-unreadable",
            hint="Free memory and a mounted /proc are needed.",
        ) from error
