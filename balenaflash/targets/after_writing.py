"""Leave a written disk: wait for the kernel and udev, and switch the disk off if asked to."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.programs import UDISKSCTL, find_system_program, run_and_explain
from balenaflash.targets import sysfs
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, Kernel, find_usb_device

_PATIENCE = 5.0
"""Seconds within which udevd notices that a disk was closed, and has its table read again."""

_INTERVAL = 0.05  # seconds
_SETTLE_LIMIT = 20
"""Seconds that udev gets to examine the new partitions."""


@dataclass(frozen=True, slots=True)
class SeenPartition:
    """A partition as the kernel has it now."""

    node: Path
    number: int
    start: int
    """Offset in bytes from the start of the disk."""

    size: int
    """Size in bytes; for an extended partition only the part that contains its table."""


@dataclass(frozen=True, slots=True)
class SettledDisk:
    """A disk that the kernel and udev have finished examining."""

    partitions: tuple[SeenPartition, ...]
    is_current: bool
    """True if these are the partitions that were written; otherwise the old ones, or none."""

    is_scanned: bool
    """True if the kernel looks for partitions; on most loop devices it does not."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The state that a written disk was left in."""

    settled: SettledDisk
    ejected: bool
    """True if it was switched off."""

    stays_on: str | None
    """The reason why it was not switched off although the user asked for it."""


def end(disk: Disk, partitions: Sequence[tuple[int, int]], *, eject: bool) -> Ending:
    """Wait until kernel and udev know the partitions of the disk, then switch it off if asked to.

    The disk was written, read back and closed before; a failure here does not change that.
    ``partitions`` are those of the image: number, and offset of the first byte.
    """
    settled = wait_for_partitions(disk, partitions)
    stays_on = switch_off(disk) if eject else None
    return Ending(settled, eject and stays_on is None, stays_on)


def wait_for_partitions(
    disk: Disk,
    expected: Sequence[tuple[int, int]],
    kernel: Kernel = RUNNING_KERNEL,
    *,
    patience: float = _PATIENCE,
) -> SettledDisk:
    """Wait until the kernel has read the new partition table and udev has examined it.

    ``expected`` are number and start in bytes of each partition. The disk is closed: that makes
    udevd have its table read again. Without udevd, `open_disk` did so when it closed the disk.
    """
    wanted = sorted(expected)
    deadline = time.monotonic() + patience
    # The first since kernel 6.10, the second only for loop devices.
    is_scanned = all(
        sysfs.read_int(disk.sys_path, name) != 0 for name in ("partscan", "loop/partscan")
    )
    waits = kernel.has_udevd and is_scanned
    while waits and _list_places(disk, kernel) != wanted and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    if kernel.has_udevd:
        # It fails if udevd is busy with another device; nothing depends on it.
        run_and_explain(["udevadm", "settle", f"--timeout={_SETTLE_LIMIT}"])
    partitions = _read_partitions(disk, kernel)
    return SettledDisk(partitions, _list_places(disk, kernel) == wanted, is_scanned)


def _list_places(disk: Disk, kernel: Kernel) -> list[tuple[int, int]]:
    return sorted((each.number, each.start) for each in _read_partitions(disk, kernel))


def _read_partitions(disk: Disk, kernel: Kernel) -> tuple[SeenPartition, ...]:
    return tuple(
        SeenPartition(
            node=kernel.usual_node(directory),
            number=sysfs.read_int(directory, "partition") or 0,
            start=sysfs.read_size(directory, "start") or 0,
            size=sysfs.read_size(directory, "size") or 0,
        )
        for directory in sysfs.list_partitions(disk.sys_path)
    )


def switch_off(
    disk: Disk, kernel: Kernel = RUNNING_KERNEL, *, patience: float = _PATIENCE
) -> str | None:
    """Switch off the device that contains the disk; ``None`` if it is off, otherwise the reason.

    Root uses the kernel, other users udisks2. The disk is flushed and closed, so it may be
    unplugged even if it stays on.
    """
    usb_device = find_usb_device(disk.sys_path)
    if usb_device is None:
        return f"has nothing to switch off ({disk.bus})"
    neighbours = _find_neighbours(disk, usb_device, kernel)
    if neighbours:
        return f"shares its reader with {', '.join(neighbours)}, so the reader stays on"
    reason = _remove(disk, usb_device) if os.geteuid() == 0 else _ask_udisks(disk)
    if reason is not None:
        return reason
    deadline = time.monotonic() + patience
    while disk.sys_path.exists():
        if time.monotonic() > deadline:
            return "was switched off, but is still there"
        time.sleep(_INTERVAL)
    return None


def _find_neighbours(disk: Disk, usb_device: Path, kernel: Kernel) -> list[str]:
    """Names of the other disks with a medium in the same reader."""
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
        # The SCSI disk first: its driver then stops it while it is still connected.
        delete = disk.sys_path / "device/delete"
        if delete.exists():
            delete.write_text("1")
        # Documentation/ABI/testing/sysfs-bus-usb: disconnects the device, and switches its port
        # off if the hub can.
        (usb_device / "remove").write_text("1")
    except OSError as error:
        return f"cannot be switched off: {error.strerror}"
    return None


def _ask_udisks(disk: Disk) -> str | None:
    if find_system_program(UDISKSCTL) is None:
        return "cannot be switched off without root: udisks2, which could do it, is not installed"
    reason = run_and_explain(
        [UDISKSCTL, "power-off", "--no-user-interaction", "--block-device", str(disk.node)]
    )
    return None if reason is None else f"cannot be switched off: {reason}"
