"""What a disk is plugged into, as its ancestors in sysfs tell.

The attribute ``removable`` does not: it is 0 for USB disks and for SD cards in
readers that are not USB, and 1 for optical drives.
"""

import re
from enum import StrEnum
from pathlib import Path

from balenaflash.target.sysfs import read_attribute, read_subsystem


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
