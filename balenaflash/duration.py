"""How long it takes at least to write a disk, as far as the way to it tells."""

from balenaflash.target.discovery import Disk

_BITS_PER_BYTE = 8


def least_seconds(disk: Disk, size: int) -> float | None:
    """Seconds below which ``size`` bytes cannot be moved to or from the disk, if known.

    How much longer it takes depends on the disk, and nobody knows before.
    """
    return None if disk.usb_speed is None else size * _BITS_PER_BYTE / disk.usb_speed
