"""How long it takes at least to write a disk, as far as the way to it tells."""

from balenaflash.target.bus import find_usb_device
from balenaflash.target.discovery import Disk
from balenaflash.target.sysfs import read_attribute

_BITS_PER_BYTE = 8


def read_usb_speed(disk: Disk) -> float | None:
    """What the USB port of the disk was set to, in bytes a second; ``None`` of any other disk.

    No data goes faster; how much slower depends on the disk, and nobody knows before.
    """
    usb_device = find_usb_device(disk.sys_path)
    if usb_device is None:
        return None
    # In Mbit/s, with a fraction for low speed: Documentation/ABI/stable/sysfs-bus-usb.
    try:
        megabits = float(read_attribute(usb_device, "speed") or "")
    except ValueError:
        return None  # "unknown"
    return megabits * 1_000_000 / _BITS_PER_BYTE if megabits > 0 else None


def least_seconds(disk: Disk, size: int) -> float | None:
    """Seconds below which ``size`` bytes cannot be moved to or from the disk, if known."""
    speed = read_usb_speed(disk)
    return None if speed is None else size / speed
