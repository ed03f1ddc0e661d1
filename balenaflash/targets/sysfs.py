"""Block devices in sysfs: numbers, relations, bus and identity.

Every directory given or returned is resolved, that is under ``/sys/devices``.
The layout is that of Documentation/ABI/stable/sysfs-block of the kernel.

The attribute ``removable`` does not: it is 0 for USB disks and for SD cards in
readers that are not USB, and 1 for optical drives.
"""

import os
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

_DELETED = " (deleted)"  # appended by the kernel to a path that was removed
_SHARED_MEMORY = "shm"  # below /dev, a place for files of all users, shm_overview(7)


class DeviceNumber(NamedTuple):
    """The number that names a device to the kernel, whatever its node is called."""

    major: int
    minor: int

    @classmethod
    def from_raw(cls, raw: int) -> Self:
        """The number in ``st_dev`` or ``st_rdev``."""
        return cls(os.major(raw), os.minor(raw))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The number in the form of sysfs and mountinfo, such as ``8:1``."""
        major, minor = text.split(":")
        return cls(int(major), int(minor))

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """The directories through which a kernel shows its devices.

    The defaults are those of the running system. A recorded tree of another
    machine is given as other directories.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")

    @property
    def has_udevd(self) -> bool:
        """Whether udevd runs: its control socket exists (libudev asks the same way)."""
        return (self.run / "udev/control").exists()

    def find_directory(self, number: DeviceNumber) -> Path | None:
        """The directory of a block device under ``sys/devices``; ``None`` if there is none."""
        directory = self.sys / "dev/block" / str(number)
        return directory.resolve() if directory.exists() else None

    def find_number(self, node: str) -> DeviceNumber | None:
        """The number of the block device that ``node`` names; ``None`` if it names none.

        ``node`` is what the kernel reports: the source of a mount, a swap area, the file of a
        loop device. Such a file may be on a network that does not answer, and who looks at it
        can then not be killed. So only a path below ``/dev`` is looked at.

        A node that was removed, or that another mount namespace sees, is looked up by
        its name: devtmpfs calls it as sysfs does, with ``!`` for ``/``.
        """
        path = self.locate_node(node)
        if path is None:
            return None
        status = _stat(path)
        if status is not None and stat.S_ISBLK(status.st_mode):
            return DeviceNumber.from_raw(status.st_rdev)
        path = Path(os.path.realpath(path))
        if not path.is_relative_to(self.dev):
            return None
        name = str(path.relative_to(self.dev)).removesuffix(_DELETED).replace("/", "!")
        try:
            text = (self.sys / "class/block" / name / "dev").read_text(encoding="ascii")
        except (FileNotFoundError, NotADirectoryError):
            return None  # not a block device, or one that is gone
        return DeviceNumber.parse(text)

    def find_node(self, usual: Path, number: DeviceNumber) -> Path:
        """The node of the block device ``number``: ``usual``, or one that a container renamed.

        It is ``usual`` also where there is no node of that number.
        """
        status = _stat(usual)
        if status is not None and (not stat.S_ISBLK(status.st_mode) or _is_of(status, number)):
            return usual
        with os.scandir(self.dev) as entries:
            # No link: whatever it leads to has a node of its own, or is not below /dev.
            found = [entry for entry in entries if not entry.is_symlink() and not entry.is_dir()]
        paths = (Path(entry.path) for entry in sorted(found, key=lambda entry: entry.name))
        return next((path for path in paths if self.is_node_of(path, number)), usual)

    def is_node_of(self, path: Path, number: DeviceNumber) -> bool:
        """Whether ``path`` is, or leads to, a node of the block device ``number``."""
        status = _stat(path)
        return status is not None and stat.S_ISBLK(status.st_mode) and _is_of(status, number)

    def locate_node(self, node: str) -> Path | None:
        """Where ``node`` is if it is a node below ``/dev``; ``None`` if it is elsewhere."""
        path = Path(os.path.normpath(node))
        for dev in (Path("/dev"), self.dev):
            if path.is_relative_to(dev):
                name = path.relative_to(dev)
                return None if name.parts[:1] == (_SHARED_MEMORY,) else self.dev / name
        return None


def _is_of(status: os.stat_result, number: DeviceNumber) -> bool:
    return DeviceNumber.from_raw(status.st_rdev) == number


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # absent here, or where this user may not look


RUNNING_KERNEL = Kernel()
"""The kernel this program runs under."""


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


class Bus(StrEnum):
    """What a disk is plugged into."""

    USB = "usb"
    MMC = "mmc"
    """Soldered: an eMMC."""
    SD = "sd"
    """A card in a reader that is not USB, or in a USB reader that speaks MMC."""
    NVME = "nvme"
    ATA = "ata"
    SCSI = "scsi"
    """SCSI, SAS, iSCSI, Fibre Channel: SCSI on none of the other buses."""
    VIRTIO = "virtio"
    LOOP = "loop"
    VIRTUAL = "virtual"
    """Without hardware of its own: device-mapper, md, zram, ram, nbd, scsi_debug."""
    UNKNOWN = "unknown"


_DECIDING_SUBSYSTEMS = {
    "usb": Bus.USB,
    "nvme": Bus.NVME,
    "nvme-subsystem": Bus.NVME,  # multipath: a virtual directory before the controllers
    "virtio": Bus.VIRTIO,
    "pseudo": Bus.VIRTUAL,  # scsi_debug
}
_ATA_PORT = re.compile(r"ata\d+")
_SD_TYPES = {"SD", "SDcombo"}  # drivers/mmc/core/bus.c, type_show; an eMMC is "MMC"


def find_bus(directory: Path) -> Bus:
    """The bus of the disk with this directory: the nearest ancestor that decides."""
    is_scsi = False
    for ancestor in directory.parents:
        subsystem = read_subsystem(ancestor)
        if subsystem == "mmc":
            return Bus.SD if read_attribute(ancestor, "type") in _SD_TYPES else Bus.MMC
        if subsystem in _DECIDING_SUBSYSTEMS:
            return _DECIDING_SUBSYSTEMS[subsystem]
        if _ATA_PORT.fullmatch(ancestor.name):
            return Bus.ATA
        is_scsi = is_scsi or subsystem == "scsi"
    if is_scsi:
        return Bus.SCSI
    if directory.parent.parent.name == "virtual":
        return Bus.LOOP if directory.name.startswith("loop") else Bus.VIRTUAL
    return Bus.UNKNOWN


def find_usb_device(directory: Path) -> Path | None:
    """The USB device that a disk is in, nearest first; ``None`` if there is none.

    Its name is the port: ``1-2.3`` is port 3 of the hub in port 2 of bus 1. An
    interface of a device has a colon in its name.
    """
    for ancestor in directory.parents:
        if read_subsystem(ancestor) == "usb" and ":" not in ancestor.name:
            return ancestor
    return None


def read_usb_speed(usb_device: Path) -> int | None:
    """Bits a second; ``None`` where the kernel does not tell."""
    # In Mbit/s, 1.5 of low speed: Documentation/ABI/stable/sysfs-bus-usb.
    try:
        megabits = float(read_attribute(usb_device, "speed") or "")
    except ValueError:
        return None  # "unknown"
    return int(megabits * 1_000_000) or None


_VPD_HEADER_SIZE = 4  # SPC, VPD page 80h: device type, page code, length (2 bytes)
_UDEV_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")  # udev_util_encode_string of libudev
_MEANINGLESS_VENDOR = re.compile(r"ATA|0x[0-9a-f]+")  # libata's name for every disk; a PCI id


def clean_text(text: str) -> str | None:
    """``text`` fit to print on a terminal; ``None`` if nothing is left.

    USB devices are free to send escape sequences as their serial number.
    """
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable.strip() or None


def clean_udev_text(text: str) -> str | None:
    """A property of udev with its escapes undone, fit to print; ``None`` if nothing is left."""
    content = _UDEV_ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), os.fsencode(text))
    return clean_text(content.decode("utf-8", "replace"))


def clean_vendor(text: str) -> str | None:
    """A vendor's name fit to print; ``None`` if it names no vendor."""
    return None if _MEANINGLESS_VENDOR.fullmatch(text.strip()) else clean_text(text)


def read_vendor(directory: Path) -> str | None:
    """Who made the disk, in the 8 characters of a SCSI inquiry."""
    return clean_vendor(read_attribute(directory, "device/vendor") or "")


def read_model(directory: Path) -> str | None:
    """The name of the product; of an ATA disk the first 16 characters."""
    # "name" is that of an MMC or SD card. SCSI, ATA and NVMe have "model".
    text = read_attribute(directory, "device/model") or read_attribute(directory, "device/name")
    return clean_text(text or "")


def read_serial(directory: Path) -> str | None:
    """The serial number; of a disk on USB that of the USB device.

    It does not depend on udevd, so two readings of one disk are equal.
    """
    usb_device = find_usb_device(directory)
    if usb_device is not None and (serial := read_attribute(usb_device, "serial")):
        return clean_text(serial)
    # Of virtio-blk; of NVMe, MMC and SD; of SCSI and ATA.
    text = (
        read_attribute(directory, "serial")
        or read_attribute(directory, "device/serial")
        or _read_unit_serial(directory)
    )
    return clean_text(text or "")


def _read_unit_serial(directory: Path) -> str | None:
    try:
        page = (directory / "device/vpd_pg80").read_bytes()
    except OSError:
        return None  # as read_attribute: a device may refuse this page with any error
    return page[_VPD_HEADER_SIZE:].decode("ascii", "replace").strip("\0 ")


def read_cid(directory: Path) -> str | None:
    """The card identification of an MMC or SD card; not known of one in a reader on USB."""
    return clean_text(read_attribute(directory, "device/cid") or "")


def read_wwn(directory: Path) -> str | None:
    """The worldwide name, in udev's form: ``0x5000...`` for NAA, else as the kernel has it."""
    text = read_attribute(directory, "wwid") or read_attribute(directory, "device/wwid") or ""
    if text.startswith("naa."):
        return clean_text("0x" + text.removeprefix("naa."))
    return clean_text(text) if text.startswith(("eui.", "nvme.")) else None
