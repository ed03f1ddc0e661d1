"""The disks of this machine: found through udev, judged by sysfs.

udev's database names vendors, models, labels and links; it is for display. Whatever
decides (bus, size, sectors, what is a partition of what) is read from sysfs, which
says the same with and without a running udevd.
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
from balenaflash.targets.udev import PyudevDatabase, UdevDatabase, UdevRecord
from balenaflash.units import SECTOR_SIZE

_SCSI_TYPE_OPTICAL = 5  # TYPE_ROM, include/scsi/scsi_proto.h of the kernel
_MEMORY_DISK = re.compile(r"z?ram\d+")


@dataclass(frozen=True, slots=True)
class DiskPartition:
    """A partition, as the kernel sees it."""

    node: Path
    number: int
    size: int
    """In bytes."""
    label: str | None
    filesystem: str | None


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole block device as it was when it was listed. ``None`` is unknown."""

    node: Path
    sys_path: Path
    """Its directory under ``/sys/devices``, which tells where it is plugged in."""
    device_number: DeviceNumber
    size: int
    """In bytes; 0 of a reader without a card and of a loop device without a file."""
    logical_sector_size: int
    physical_sector_size: int
    bus: Bus
    vendor: str | None
    model: str | None
    serial: str | None
    """As the kernel reads it; of a USB disk that of the enclosure."""
    wwn: str | None
    removable: bool
    """The medium leaves the drive; says nothing of drives that are unplugged as a whole."""
    read_only: bool
    rotational: bool | None
    disk_sequence: int | None
    """Never given twice until the next boot, also not for another card in the same
    reader; kernel 5.15 and newer."""
    links: tuple[Path, ...]
    """The ``/dev/disk/by-*`` names; empty without udevd."""
    usb_port: str | None
    """Such as ``1-2.3``: bus 1, port 2, there a hub, its port 3."""
    usb_speed: int | None
    """Bits a second that the USB port was set to; no data goes faster."""
    mmc_cid: str | None
    """What an MMC or SD card says it is, in 32 hexadecimal digits: maker, product, serial."""
    backing_file: Path | None
    """The file or block device that a loop device stands on."""
    label: str | None
    filesystem: str | None
    """Of a filesystem that fills the disk, without a partition table."""
    partitions: tuple[DiskPartition, ...]

    @property
    def is_external(self) -> bool:
        """Whether people plug it in and out: on USB, an SD card, or a removable medium."""
        return self.removable or self.usb_port is not None or self.bus in {Bus.USB, Bus.SD}

    @property
    def is_virtual(self) -> bool:
        """Whether there is no hardware of its own: a loop device, device-mapper, md and such."""
        return self.bus in {Bus.LOOP, Bus.VIRTUAL}


def list_disks(
    kernel: Kernel = RUNNING_KERNEL, database: UdevDatabase | None = None
) -> tuple[Disk, ...]:
    """All whole block devices somebody could mean by "disk", real ones first.

    Left out are optical drives, memory disks (ram, zram), boot areas of an eMMC, and
    virtual devices of size 0, which are loop devices without a file. A card reader
    without a card stays, with size 0.

    Raises:
        ToolMissingError: libudev is not installed.
    """
    database = database or PyudevDatabase()
    disks = []
    for directory in database.list_disks():
        disk = _describe(directory, kernel, database)
        if disk is not None and _is_worth_listing(disk):
            disks.append(disk)
    return tuple(sorted(disks, key=lambda disk: (disk.is_virtual, disk.device_number)))


def find_disk(
    target: str | Path, kernel: Kernel = RUNNING_KERNEL, database: UdevDatabase | None = None
) -> Disk:
    """The whole block device that ``target``, its node or a link to it, names.

    Raises:
        TargetRefusedError: there is nothing, it is no block device, a partition, or an
            optical drive.
        ToolMissingError: libudev is not installed.
    """
    number = _find_number(Path(target))
    directory = kernel.find_directory(number)
    disk = None
    if directory is not None:
        _refuse_unfit(Path(target), directory, kernel)
        disk = _describe(directory, kernel, database or PyudevDatabase())
        if disk is not None and not kernel.is_node_of(disk.node, number):
            # As a container has it: docker run --device /dev/sdb:/dev/target.
            disk = replace(disk, node=Path(target).absolute())
    if disk is None:
        raise refusal(
            "target-missing",
            f"{target}: names block device {number}, which is not there (any more)",
            "Run: balenaflash devices",
        )
    return disk


def _find_number(target: Path) -> DeviceNumber:
    try:
        status = target.stat()
    except OSError as error:
        raise refusal(
            "target-missing", f"{target}: {error.strerror}", "Run: balenaflash devices"
        ) from error
    if not stat.S_ISBLK(status.st_mode):
        raise refusal(
            "target-not-block-device",
            f"{target}: is not a block device",
            "Run: balenaflash devices",
        )
    return DeviceNumber.from_raw(status.st_rdev)


def _refuse_unfit(target: Path, directory: Path, kernel: Kernel) -> None:
    if sysfs.is_partition(directory):
        disk = _node(sysfs.find_whole_disk(directory), kernel)
        raise refusal(
            "target-is-partition",
            f"{target}: is a partition of {disk}",
            f"An image goes to the whole disk: {disk}",
        )
    if _is_optical(directory):
        raise refusal("target-optical", f"{target}: is an optical drive, not a disk")


def _describe(directory: Path, kernel: Kernel, database: UdevDatabase) -> Disk | None:
    number = sysfs.read_number(directory)
    size = sysfs.read_int(directory, "size")
    if number is None or size is None:
        return None  # hidden (a path of NVMe multipath), or unplugged since it was found
    record = database.read(directory)
    usb_device = find_usb_device(directory)
    backing_file = sysfs.read_backing_file(directory)
    logical = sysfs.read_int(directory, "queue/logical_block_size") or SECTOR_SIZE
    rotational = sysfs.read_int(directory, "queue/rotational")
    return Disk(
        node=kernel.find_node(_node(directory, kernel), number),
        sys_path=directory,
        device_number=number,
        size=size * sysfs.SIZE_UNIT,
        logical_sector_size=logical,
        physical_sector_size=sysfs.read_int(directory, "queue/physical_block_size") or logical,
        bus=find_bus(directory),
        vendor=_find_vendor(directory, record),
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
        node=_node(directory, kernel),
        number=sysfs.read_int(directory, "partition") or 0,
        size=(sysfs.read_int(directory, "size") or 0) * sysfs.SIZE_UNIT,
        label=record.read_text("ID_FS_LABEL_ENC", "ID_PART_ENTRY_NAME"),
        filesystem=record.read_text("ID_FS_TYPE"),
    )


def _node(directory: Path, kernel: Kernel) -> Path:
    # The kernel writes "!" in sysfs for a "/" in a node's name, as in cciss/c0d0.
    return kernel.dev / directory.name.replace("!", "/")


def _find_vendor(directory: Path, record: UdevRecord) -> str | None:
    text = record.read_text("ID_VENDOR_ENC", "ID_VENDOR")
    return read_vendor(directory) if text is None else clean_vendor(text)


def _is_worth_listing(disk: Disk) -> bool:
    directory = disk.sys_path
    is_boot_area = sysfs.read_subsystem(directory.parent) == "block"
    is_memory = _MEMORY_DISK.fullmatch(directory.name) is not None
    is_detached = disk.is_virtual and disk.size == 0
    return not (is_boot_area or is_memory or is_detached or _is_optical(directory))


def _is_optical(directory: Path) -> bool:
    return sysfs.read_int(directory, "device/type") == _SCSI_TYPE_OPTICAL


_BITS_PER_BYTE = 8


def least_seconds(disk: Disk, size: int) -> float | None:
    """Seconds below which ``size`` bytes cannot be moved to or from the disk, if known.

    How much longer it takes depends on the disk, and nobody knows before.
    """
    return None if disk.usb_speed is None else size * _BITS_PER_BYTE / disk.usb_speed
