"""Block devices as directories of sysfs: what they are part of, stand on and carry.

Every directory given or returned is resolved, that is under ``/sys/devices``.
The layout is that of Documentation/ABI/stable/sysfs-block of the kernel.
"""

import os
from pathlib import Path

from balenaflash.target.kernel import DeviceNumber

SIZE_UNIT = 512
"""Bytes that the attribute ``size`` counts in, whatever the sector size of the disk."""


def read_attribute(directory: Path, name: str) -> str | None:
    """The text of an attribute without its line end; ``None`` if there is none or it is empty."""
    try:
        content = (directory / name).read_bytes()
    except OSError:
        # Absent, of a device that is gone, or refused by its driver, which is free to
        # choose the error: the attribute is unknown in each case.
        return None
    return os.fsdecode(content).strip("\0\n ") or None


def read_int(directory: Path, name: str) -> int | None:
    """The decimal number in an attribute; ``None`` if there is none."""
    text = read_attribute(directory, name)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def read_number(directory: Path) -> DeviceNumber | None:
    """The device number; ``None`` of a hidden device (a path of NVMe multipath) or a gone one."""
    text = read_attribute(directory, "dev")
    return None if text is None else DeviceNumber.parse(text)


def read_subsystem(directory: Path) -> str | None:
    """The name of the subsystem a device belongs to, such as ``block`` or ``usb``."""
    link = directory / "subsystem"
    return link.readlink().name if link.is_symlink() else None


def is_partition(directory: Path) -> bool:
    """Whether the block device is a partition of the one its directory lies in."""
    return (directory / "partition").exists()


def find_whole_disk(directory: Path) -> Path:
    """The disk that a partition is part of; the disk itself if it is none."""
    return directory.parent if is_partition(directory) else directory


def list_partitions(disk: Path) -> list[Path]:
    """The partitions of a whole disk, by number."""
    children = filter(is_partition, _list_children(disk))
    return sorted(children, key=lambda child: read_int(child, "partition") or 0)


def list_parts(disk: Path) -> list[Path]:
    """A whole disk, its partitions, and the boot areas of an eMMC (``mmcblk0boot0``).

    Boot areas are whole disks to the kernel, with the eMMC as their parent.
    """
    boot_areas = [
        child
        for child in _list_children(disk)
        # A link, such as "device" or "bdi", leads out of the disk.
        if not child.is_symlink() and (child / "dev").exists() and not is_partition(child)
    ]
    return [disk, *list_partitions(disk), *boot_areas]


def list_holders(directory: Path) -> list[Path]:
    """The devices that stand on this one: device-mapper, md, bcache; not loop devices."""
    return _list_links(directory / "holders")


def list_slaves(directory: Path) -> list[Path]:
    """The devices that this one stands on; a loop device names its file elsewhere."""
    return _list_links(directory / "slaves")


def _list_links(directory: Path) -> list[Path]:
    return [link.resolve() for link in _list_children(directory)]


def _list_children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # the device was unplugged, or its kind has no such directory


def read_backing_file(directory: Path) -> str | None:
    """What a loop device stands on, a file or a block device; ``None`` of anything else."""
    return read_attribute(directory, "loop/backing_file")
