"""What a disk calls itself: vendor, model, serial number, WWN, as sysfs has them."""

import os
import re
from pathlib import Path

from balenaflash.target.bus import find_usb_device
from balenaflash.target.sysfs import read_attribute

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
