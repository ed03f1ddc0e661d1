"""Switch a disk off, so that it can be unplugged."""

import os
import time
from pathlib import Path

from balenaflash.system_programs import find_system_program
from balenaflash.target import sysfs
from balenaflash.target.bus import find_usb_device
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.programs import UDISKSCTL, run_program

_PATIENCE = 5.0  # seconds until the kernel has let go of it
_INTERVAL = 0.05  # seconds


def eject(
    disk: Disk, kernel: Kernel = RUNNING_KERNEL, *, patience: float = _PATIENCE
) -> str | None:
    """Switch off what the disk is in; ``None`` if it is off, else why it is not.

    Root asks the kernel, everybody else udisks2. The disk is flushed and closed. That it
    stays on is no fault: it may be unplugged all the same.
    """
    usb_device = find_usb_device(disk.sys_path)
    if usb_device is None:
        return f"has nothing to switch off ({disk.bus})"
    neighbours = _find_neighbours(disk, usb_device, kernel)
    if neighbours:
        return f"shares its reader with {', '.join(neighbours)}, so the reader stays on"
    reason = _remove(disk, usb_device) if os.geteuid() == 0 else _ask_udisks(disk)
    return reason or _wait_until_gone(disk, patience)


def _find_neighbours(disk: Disk, usb_device: Path, kernel: Kernel) -> list[str]:
    """Other disks with a medium in the same reader."""
    directories = [link.resolve() for link in sorted((kernel.sys / "block").iterdir())]
    return [
        directory.name
        for directory in directories
        if directory != disk.sys_path
        and directory.is_relative_to(usb_device)
        and sysfs.read_int(directory, "size")
    ]


def _remove(disk: Disk, usb_device: Path) -> str | None:
    try:
        # The SCSI disk first: its driver then tells it to stop while it can still be told.
        delete = disk.sys_path / "device/delete"
        if delete.exists():
            delete.write_text("1")
        # Documentation/ABI/testing/sysfs-bus-usb: disconnects it, and switches its port off
        # where the hub can.
        (usb_device / "remove").write_text("1")
    except OSError as error:
        return f"cannot be switched off: {error.strerror}"
    return None


def _ask_udisks(disk: Disk) -> str | None:
    if find_system_program(UDISKSCTL) is None:
        return "cannot be switched off without root: udisks2, which would do it, is not installed"
    said = run_program(
        [UDISKSCTL, "power-off", "--no-user-interaction", "--block-device", str(disk.node)]
    )
    return None if said is None else f"cannot be switched off: {said}"


def _wait_until_gone(disk: Disk, patience: float) -> str | None:
    deadline = time.monotonic() + patience
    while disk.sys_path.exists():
        if time.monotonic() > deadline:
            return "was told to switch off, and is still there"
        time.sleep(_INTERVAL)
    return None
