"""The content of a disk before it is erased, by udev or read from the disk itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.errors import ImageError
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
    """Size in bytes."""

    filesystem: str | None
    label: str | None
    """Label of the filesystem, else the name of the partition."""


def find_content(disk: Disk) -> tuple[DiskContent, ...]:
    """The content of the disk, as far as it is known; empty if nothing is.

    udev knows more kinds of filesystems. Without it, as in most containers, the disk is read,
    if this user may read it.
    """
    by_udev = tuple(
        DiskContent(each.node.name, each.size, each.filesystem, each.label)
        for each in disk.partitions
    )
    if not by_udev and (disk.filesystem or disk.label):
        by_udev = (DiskContent(disk.node.name, disk.size, disk.filesystem, disk.label),)
    if any(each.filesystem or each.label for each in by_udev):
        return by_udev
    return _read(disk) or by_udev


def _read(disk: Disk) -> tuple[DiskContent, ...]:
    try:
        descriptor = os.open(disk.node, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ()  # no permission, or gone; opening it for writing will report that
    try:
        source = FileSource(disk.node, descriptor, Container.BLOCK_DEVICE, disk.size)
        return tuple(_recognise(source, disk))
    except ImageError:
        return ()  # it cannot be read
    finally:
        os.close(descriptor)


def _recognise(source: Source, disk: Disk) -> Iterator[DiskContent]:
    whole = _find_filesystem(source, Extent(0, disk.size))
    try:
        partitions = read_table_sectors(source).table.partitions
    except ImageError:
        partitions = ()  # no table of a known kind
    # A stick with an installer has both: an ISO with a table laid over it.
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
