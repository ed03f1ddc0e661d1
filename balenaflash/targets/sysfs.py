"""Block devices in sysfs: numbers, relations, bus and identity.

Every directory, as an argument or a result, is resolved: it is under ``/sys/devices``. The layout
is that of Documentation/ABI/stable/sysfs-block of the kernel.

The attribute ``removable`` does not show what users plug in: it is 0 for USB disks and for SD cards
in readers that are not USB, and 1 for optical drives.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

_DELETED = " (deleted)"  # appended by the kernel to a path that was removed
_SHARED_MEMORY = "shm"  # below /dev, a place for files of all users, shm_overview(7)


class DeviceNumber(NamedTuple):
    """The number of a device in the kernel, independent of the name of its node."""

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
    """The directories in which a kernel shows its devices.

    The defaults are those of the running system; tests use recorded trees of other machines.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    run: Path = Path("/run")

    @property
    def has_udevd(self) -> bool:
        """True if udevd runs: its control socket exists (libudev checks the same)."""
        return (self.run / "udev/control").exists()

    def find_directory(self, number: DeviceNumber) -> Path | None:
        """The directory of a block device; ``None`` if there is no such device."""
        directory = self.sys / "dev/block" / str(number)
        return directory.resolve() if directory.exists() else None

    def find_number(self, node: str) -> DeviceNumber | None:
        """The number of the block device that ``node`` names; ``None`` if it is not one.

        ``node`` is a path that the kernel reports: the source of a mount, a swap area, the file of
        a loop device. Such a file may be on a network that does not answer, and a process that
        examines it can then not be killed. So only paths below ``/dev`` are examined.

        A node that was removed, or belongs to another mount namespace, is found by its name:
        devtmpfs uses the name of sysfs, with ``/`` in place of ``!``.
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

    def usual_node(self, directory: Path) -> Path:
        """The node that udev and devtmpfs make for the block device in ``directory``."""
        # sysfs has "!" for a "/" in the name, as in cciss/c0d0.
        return self.dev / directory.name.replace("!", "/")

    def find_node(self, usual: Path, number: DeviceNumber) -> Path:
        """The node of the block device ``number``: ``usual``, or one that a container renamed.

        Without a node of that number it is ``usual``.
        """
        status = _stat(usual)
        is_other_kind = status is not None and not stat.S_ISBLK(status.st_mode)
        if is_other_kind or self.is_node_of(usual, number):
            return usual
        with os.scandir(self.dev) as entries:
            # A link leads to something that has a node of its own, or is not below /dev.
            found = [entry for entry in entries if not entry.is_symlink() and not entry.is_dir()]
        paths = (Path(entry.path) for entry in sorted(found, key=lambda entry: entry.name))
        return next((path for path in paths if self.is_node_of(path, number)), usual)

    def is_node_of(self, path: Path, number: DeviceNumber) -> bool:
        """True if ``path`` is, or leads to, a node of the block device ``number``."""
        status = _stat(path)
        if status is None or not stat.S_ISBLK(status.st_mode):
            return False
        return DeviceNumber.from_raw(status.st_rdev) == number

    def locate_node(self, node: str) -> Path | None:
        """The place of ``node`` if it is below ``/dev``; ``None`` if it is elsewhere."""
        path = Path(os.path.normpath(node))
        for dev in (Path("/dev"), self.dev):
            if path.is_relative_to(dev):
                name = path.relative_to(dev)
                return None if name.parts[:1] == (_SHARED_MEMORY,) else self.dev / name
        return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # missing, or this user may not see it


RUNNING_KERNEL = Kernel()
"""The kernel this program runs under."""


_SIZE_UNIT = 512  # bytes, for any sector size of the disk


def read_attribute(directory: Path, name: str) -> str | None:
    """The text of an attribute without its line end; ``None`` if it is missing or empty."""
    try:
        content = (directory / name).read_bytes()
    except OSError:
        # The attribute is missing, the device is gone, or its driver refuses, which may choose
        # any error.
        return None
    return os.fsdecode(content).strip("\0\n ") or None


def read_int(directory: Path, name: str) -> int | None:
    """The decimal number in an attribute; ``None`` if it is missing or not a number."""
    text = read_attribute(directory, name)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def read_size(directory: Path, name: str = "size") -> int | None:
    """The size, or another attribute that counts in 512 bytes, in bytes; ``None`` if missing."""
    number = read_int(directory, name)
    return None if number is None else number * _SIZE_UNIT


def read_number(directory: Path) -> DeviceNumber | None:
    """The device number; ``None`` if the device is gone or hidden (a path of NVMe multipath)."""
    text = read_attribute(directory, "dev")
    return None if text is None else DeviceNumber.parse(text)


def read_subsystem(directory: Path) -> str | None:
    """The name of the subsystem of a device, such as ``block`` or ``usb``."""
    link = directory / "subsystem"
    return link.readlink().name if link.is_symlink() else None


def is_partition(directory: Path) -> bool:
    """True if the block device is a partition of the one whose directory contains its own."""
    return (directory / "partition").exists()


def find_whole_disk(directory: Path) -> Path:
    """The disk that contains a partition; a disk itself is returned as it is."""
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


def list_upper_devices(directory: Path) -> list[Path]:
    """The devices that use this one: device-mapper, md, bcache; not loop devices."""
    return _list_links(directory / "holders")


def list_lower_devices(directory: Path) -> list[Path]:
    """The devices that this one uses; the file of a loop device is not among them."""
    return _list_links(directory / "slaves")


def _list_links(directory: Path) -> list[Path]:
    return [link.resolve() for link in _list_children(directory)]


def _list_children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []  # the device was unplugged, or its kind has no such directory


def list_loops(kernel: Kernel) -> Iterator[tuple[Path, str]]:
    """The directory and the backing file of each loop device that has one."""
    for link in sorted((kernel.sys / "block").glob("loop*")):
        directory = link.resolve()
        backing_file = read_backing_file(directory)
        if backing_file is not None:
            yield directory, backing_file


def read_backing_file(directory: Path) -> str | None:
    """The path of the file or block device of a loop device; ``None`` for other devices."""
    return read_attribute(directory, "loop/backing_file")


class Bus(StrEnum):
    """The kind of connection of a disk."""

    USB = "usb"
    MMC = "mmc"
    """An eMMC, which is soldered."""
    SD = "sd"
    """A card in a reader that is not USB, or in a USB reader that speaks MMC."""
    NVME = "nvme"
    ATA = "ata"
    SCSI = "scsi"
    """SCSI, SAS, iSCSI, Fibre Channel: SCSI, but not on another bus of this list."""
    VIRTIO = "virtio"
    LOOP = "loop"
    VIRTUAL = "virtual"
    """A device without hardware: device-mapper, md, zram, ram, nbd, scsi_debug."""
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
    """The bus of a disk, by its nearest ancestor that has a known subsystem."""
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
    """The nearest USB device that contains a disk; ``None`` if it is not on USB.

    Its name is the port: ``1-2.3`` is port 3 of the hub in port 2 of bus 1.
    """
    for ancestor in directory.parents:
        # An interface of a device has a colon in its name.
        if read_subsystem(ancestor) == "usb" and ":" not in ancestor.name:
            return ancestor
    return None


def read_usb_speed(usb_device: Path) -> int | None:
    """The speed in bits a second; ``None`` if unknown."""
    # Mbit/s, for low speed 1.5: Documentation/ABI/stable/sysfs-bus-usb.
    try:
        megabits = float(read_attribute(usb_device, "speed") or "")
    except ValueError:
        return None  # "unknown"
    return int(megabits * 1_000_000) or None


_VPD_HEADER_SIZE = 4  # SPC, VPD page 80h: device type, page code, length (2 bytes)
_UDEV_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")  # udev_util_encode_string of libudev
_MEANINGLESS_VENDOR = re.compile(r"ATA|0x[0-9a-f]+")  # libata's name for every disk; a PCI id


def clean_text(text: str) -> str | None:
    """``text`` with ``?`` for unprintable characters; ``None`` if it is empty.

    A USB device may have terminal escape sequences in its serial number.
    """
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable.strip() or None


def clean_udev_text(text: str) -> str | None:
    """A property of udev, its escapes decoded, as `clean_text` returns it."""
    content = _UDEV_ESCAPE.sub(lambda escape: bytes.fromhex(escape[1].decode()), os.fsencode(text))
    return clean_text(content.decode("utf-8", "replace"))


def clean_vendor(text: str) -> str | None:
    """The name of a vendor, as `clean_text` returns it; ``None`` if it does not name one."""
    return None if _MEANINGLESS_VENDOR.fullmatch(text.strip()) else clean_text(text)


def read_vendor(directory: Path) -> str | None:
    """The vendor of the disk: the 8 characters of a SCSI inquiry."""
    return clean_vendor(read_attribute(directory, "device/vendor") or "")


def read_model(directory: Path) -> str | None:
    """The name of the product; for an ATA disk its first 16 characters."""
    # MMC and SD cards have "name"; SCSI, ATA and NVMe have "model".
    text = read_attribute(directory, "device/model") or read_attribute(directory, "device/name")
    return clean_text(text or "")


def read_serial(directory: Path) -> str | None:
    """The serial number; for a disk on USB that of the USB device.

    It does not depend on udevd, so it is always the same for the same disk.
    """
    usb_device = find_usb_device(directory)
    if usb_device is not None and (serial := read_attribute(usb_device, "serial")):
        return clean_text(serial)
    # virtio-blk; NVMe, MMC and SD; SCSI and ATA.
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
        return None  # as in read_attribute
    return page[_VPD_HEADER_SIZE:].decode("ascii", "replace").strip("\0 ")


def read_cid(directory: Path) -> str | None:
    """The card identification of an MMC or SD card; ``None`` if it is in a reader on USB."""
    return clean_text(read_attribute(directory, "device/cid") or "")


def read_wwn(directory: Path) -> str | None:
    """The worldwide name as udev writes it: ``0x5000...`` for NAA, otherwise as in the kernel."""
    text = read_attribute(directory, "wwid") or read_attribute(directory, "device/wwid") or ""
    if text.startswith("naa."):
        return clean_text("0x" + text.removeprefix("naa."))
    return clean_text(text) if text.startswith(("eui.", "nvme.")) else None
