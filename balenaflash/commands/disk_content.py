"""What is on a disk before it is erased, by udev or read from the disk itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.errors import (
    ImageError,
)
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem, recognise_foreign
from balenaflash.formats.partitions.model import PartitionKind
from balenaflash.formats.partitions.table import read_table_sectors
from balenaflash.source.base import FileSource, Source
from balenaflash.source.container.decoder import Container
from balenaflash.targets.disks import Disk
from balenaflash.units import Extent


@dataclass(frozen=True, slots=True)
class DiskContent:
    """A partition, or the one filesystem that fills a disk. ``None`` is unknown."""

    name: str
    size: int
    """In bytes."""

    filesystem: str | None
    label: str | None
    """Of the filesystem, else the partition's name."""


def find_content(disk: Disk) -> tuple[DiskContent, ...]:
    """What is on the disk, as far as anybody can tell; empty if nothing is known.

    udev knows more kinds of filesystems. Without it, as in most containers, the disk is read,
    if this user may do so.
    """
    told = tuple(_told(disk))
    if any(each.filesystem or each.label for each in told):
        return told
    return _read(disk) or told


def _told(disk: Disk) -> Iterator[DiskContent]:
    for each in disk.partitions:
        yield DiskContent(each.node.name, each.size, each.filesystem, each.label)
    if not disk.partitions and (disk.filesystem or disk.label):
        yield DiskContent(disk.node.name, disk.size, disk.filesystem, disk.label)


def _read(disk: Disk) -> tuple[DiskContent, ...]:
    try:
        descriptor = os.open(disk.node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()  # not for this user, or gone; opening it for writing will tell
    try:
        source = FileSource(disk.node, descriptor, Container.BLOCK_DEVICE, disk.size)
        return tuple(_probe(source, disk))
    except ImageError:
        return ()  # it cannot be read
    finally:
        os.close(descriptor)


def _probe(source: Source, disk: Disk) -> Iterator[DiskContent]:
    whole = _find_filesystem(source, Extent(0, disk.size))
    try:
        partitions = read_table_sectors(source).table.partitions
    except ImageError:
        partitions = ()  # no table that this program understands
    # Of a stick with an installer both: an ISO with a table laid over it.
    if whole is not None and (not partitions or whole.type == "iso9660"):
        yield DiskContent(disk.node.name, disk.size, whole.type, whole.label)
    for each in partitions:
        if each.kind is not PartitionKind.EXTENDED:
            found = _find_filesystem(source, each.extent)
            filesystem, label = (None, None) if found is None else (found.type, found.label)
            name = f"partition {each.number}"
            yield DiskContent(name, each.extent.size, filesystem, label or each.name)


def _find_filesystem(source: Source, extent: Extent) -> Filesystem | None:
    return recognise_filesystem(source, extent) or recognise_foreign(source, extent)
