"""The disks of this machine, listed by udev and described by sysfs.

The vendors, models, labels and links in udev's database are only shown. Facts that decide (bus,
size, sectors, the disk of a partition) are read from sysfs, which is the same without a running
udevd.
"""

import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from balenaflash.errors import refusal
from balenaflash.targets import sysfs
from balenaflash.targets.sysfs import (
    RUNNING_KERNEL,
    Bus,
    DeviceNumber,
    Kernel,
    clean_vendor,
    find_bus,
    find_usb_device,
    read_cid,
    read_model,
    read_serial,
    read_usb_speed,
    read_vendor,
    read_wwn,
)
from balenaflash.targets.udev import PyudevDatabase, UdevDatabase
from balenaflash.units import SECTOR_SIZE

_LIST_HINT = "Run: balenaflash devices"
_SCSI_TYPE_OPTICAL = 5  # TYPE_ROM, include/scsi/scsi_proto.h of the kernel
_MEMORY_DISK = re.compile(r"z?ram\d+")


@dataclass(frozen=True, slots=True)
class DiskPartition:
    """A partition, as the kernel sees it."""

    node: Path
    number: int
    size: int
    """Size in bytes."""
    label: str | None
    filesystem: str | None


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole block device as it was when it was listed. ``None`` means unknown."""

    node: Path
    sys_path: Path
    """Its directory under ``/sys/devices``, which depends on where it is plugged in."""
    device_number: DeviceNumber
    size: int
    """Size in bytes; 0 for a reader without a card and a loop device without a file."""
    logical_sector_size: int
    physical_sector_size: int
    bus: Bus
    vendor: str | None
    model: str | None
    serial: str | None
    """The serial number that the kernel reads; for a USB disk that of the enclosure."""
    wwn: str | None
    removable: bool
    """True if the medium can leave the drive; it may be False for a drive that is unplugged."""
    read_only: bool
    rotational: bool | None
    disk_sequence: int | None
    """A number never assigned twice until the next boot, not even to another card in the same
    reader; kernel 5.15 and newer."""
    links: tuple[Path, ...]
    """The ``/dev/disk/by-*`` names; empty without udevd."""
    usb_port: str | None
    """USB port, such as ``1-2.3``: port 3 of the hub in port 2 of bus 1."""
    usb_speed: int | None
    """Speed of the USB port in bits a second; no data is faster."""
    mmc_cid: str | None
    """Identification of an MMC or SD card, 32 hexadecimal digits: maker, product, serial."""
    backing_file: Path | None
    """The file or block device of a loop device."""
    label: str | None
    filesystem: str | None
    """Type of a filesystem that fills the disk, without a partition table; likewise ``label``."""
    partitions: tuple[DiskPartition, ...]

    @property
    def is_external(self) -> bool:
        """True if users plug it in and out: it is on USB, an SD card, or a removable medium."""
        return self.removable or self.usb_port is not None or self.bus in {Bus.USB, Bus.SD}

    @property
    def is_virtual(self) -> bool:
        """True if it has no hardware: a loop device, device-mapper, md and the like."""
        return self.bus in {Bus.LOOP, Bus.VIRTUAL}


def list_disks(
    kernel: Kernel = RUNNING_KERNEL, database: UdevDatabase | None = None
) -> tuple[Disk, ...]:
    """The disks of the machine, real ones before virtual ones.

    Optical drives, memory disks (ram, zram), boot areas of an eMMC, and virtual devices of size 0
    (loop devices without a file) are not listed. A card reader without a card has size 0.

    Raises:
        ToolMissingError: libudev is not installed.
    """
    database = database or PyudevDatabase()
    found = [_describe(directory, kernel, database) for directory in database.list_disks()]
    disks = [disk for disk in found if disk is not None and _is_worth_listing(disk)]
    return tuple(sorted(disks, key=lambda disk: (disk.is_virtual, disk.device_number)))


def find_disk(
    target: str | Path, kernel: Kernel = RUNNING_KERNEL, database: UdevDatabase | None = None
) -> Disk:
    """The whole block device whose node ``target`` is, or leads to.

    Raises:
        TargetRefusedError: it is missing, is not a block device, or is a partition or an optical
            drive.
        ToolMissingError: libudev is not installed.
    """
    target = Path(target)
    try:
        status = target.stat()
    except OSError as error:
        raise refusal("target-missing", f"{target}: {error.strerror}", _LIST_HINT) from error
    if not stat.S_ISBLK(status.st_mode):
        raise refusal("target-not-block-device", f"{target}: is not a block device", _LIST_HINT)
    number = DeviceNumber.from_raw(status.st_rdev)
    directory = kernel.find_directory(number)
    disk = None
    if directory is not None:
        _refuse_other_kinds(target, directory, kernel)
        disk = _describe(directory, kernel, database or PyudevDatabase())
    if disk is None:
        message = f"{target}: refers to block device {number}, which is not present"
        raise refusal("target-missing", message, _LIST_HINT)
    if not kernel.is_node_of(disk.node, number):
        # As in a container: docker run --device /dev/sdb:/dev/target.
        return replace(disk, node=target.absolute())
    return disk


def _refuse_other_kinds(target: Path, directory: Path, kernel: Kernel) -> None:
    if sysfs.is_partition(directory):
        disk = kernel.usual_node(sysfs.find_whole_disk(directory))
        raise refusal(
            "target-is-partition",
            f"{target}: is a partition of {disk}",
            f"Name the whole disk: {disk}",
        )
    if _is_optical(directory):
        raise refusal("target-optical", f"{target}: is an optical drive, not a disk")


def _describe(directory: Path, kernel: Kernel, database: UdevDatabase) -> Disk | None:
    number = sysfs.read_number(directory)
    size = sysfs.read_size(directory)
    if number is None or size is None:
        return None  # hidden (a path of NVMe multipath), or unplugged since it was listed
    record = database.read(directory)
    vendor = record.read_text("ID_VENDOR_ENC", "ID_VENDOR")
    usb_device = find_usb_device(directory)
    backing_file = sysfs.read_backing_file(directory)
    logical = sysfs.read_int(directory, "queue/logical_block_size") or SECTOR_SIZE
    rotational = sysfs.read_int(directory, "queue/rotational")
    return Disk(
        node=kernel.find_node(kernel.usual_node(directory), number),
        sys_path=directory,
        device_number=number,
        size=size,
        logical_sector_size=logical,
        physical_sector_size=sysfs.read_int(directory, "queue/physical_block_size") or logical,
        bus=find_bus(directory),
        vendor=read_vendor(directory) if vendor is None else clean_vendor(vendor),
        model=record.read_text("ID_MODEL_ENC", "ID_MODEL") or read_model(directory),
        serial=read_serial(directory) or record.read_text("ID_SERIAL_SHORT"),
        wwn=record.read_text("ID_WWN") or read_wwn(directory),
        removable=sysfs.read_int(directory, "removable") == 1,
        read_only=sysfs.read_int(directory, "ro") == 1,
        rotational=None if rotational is None else rotational == 1,
        disk_sequence=sysfs.read_int(directory, "diskseq"),
        links=record.links,
        usb_port=None if usb_device is None else usb_device.name,
        usb_speed=None if usb_device is None else read_usb_speed(usb_device),
        mmc_cid=read_cid(directory),
        backing_file=None if backing_file is None else Path(backing_file),
        label=record.read_text("ID_FS_LABEL_ENC"),
        filesystem=record.read_text("ID_FS_TYPE"),
        partitions=tuple(
            _describe_partition(partition, kernel, database)
            for partition in sysfs.list_partitions(directory)
        ),
    )


def _describe_partition(directory: Path, kernel: Kernel, database: UdevDatabase) -> DiskPartition:
    record = database.read(directory)
    return DiskPartition(
        node=kernel.usual_node(directory),
        number=sysfs.read_int(directory, "partition") or 0,
        size=sysfs.read_size(directory) or 0,
        label=record.read_text("ID_FS_LABEL_ENC", "ID_PART_ENTRY_NAME"),
        filesystem=record.read_text("ID_FS_TYPE"),
    )


def _is_worth_listing(disk: Disk) -> bool:
    directory = disk.sys_path
    is_boot_area = sysfs.read_subsystem(directory.parent) == "block"
    is_memory = _MEMORY_DISK.fullmatch(directory.name) is not None
    is_detached = disk.is_virtual and disk.size == 0
    return not (is_boot_area or is_memory or is_detached or _is_optical(directory))


def _is_optical(directory: Path) -> bool:
    return sysfs.read_int(directory, "device/type") == _SCSI_TYPE_OPTICAL


def least_seconds(disk: Disk, size: int) -> float | None:
    """Least time in seconds to transfer ``size`` bytes by the USB port; ``None`` if unknown.

    The disk itself may be much slower.
    """
    bits = 8 * size
    return None if disk.usb_speed is None else bits / disk.usb_speed
