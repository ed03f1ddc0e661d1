"""Leave a written disk: wait for the kernel and udev, and switch it off if asked to."""

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
"""Seconds in which udevd notices that a disk was closed, and has its table read again."""

_INTERVAL = 0.05  # seconds
_SETTLE_LIMIT = 20
"""Seconds that udev gets to look at the new partitions."""


@dataclass(frozen=True, slots=True)
class SeenPartition:
    """A partition as the kernel has it now."""

    node: Path
    number: int
    start: int
    """In bytes from the start of the disk."""

    size: int
    """In bytes; of an extended partition just what holds its table."""


@dataclass(frozen=True, slots=True)
class SettledDisk:
    """A disk that nobody is busy with any more."""

    partitions: tuple[SeenPartition, ...]
    is_current: bool
    """Whether these are the partitions that were written; else those before, or none."""

    is_scanned: bool
    """Whether the kernel looks for partitions at all: on most loop devices it does not."""


def settle(
    disk: Disk,
    expected: Sequence[tuple[int, int]],
    kernel: Kernel = RUNNING_KERNEL,
    *,
    patience: float = _PATIENCE,
) -> SettledDisk:
    """Wait until the kernel has the partitions of the new table, and udev has looked at them.

    ``expected`` are number and start in bytes of each partition. The disk was closed before:
    with udevd its table is read again because of that, without it by who closed it.
    """
    wanted = sorted(expected)
    deadline = time.monotonic() + patience
    is_scanned = _is_scanned(disk)
    waits = kernel.has_udevd and is_scanned
    while waits and _seen_places(disk, kernel) != wanted and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    if kernel.has_udevd:
        # It fails where udevd is busy with something else; nothing depends on it.
        run_and_explain(["udevadm", "settle", f"--timeout={_SETTLE_LIMIT}"])
    partitions = _read_partitions(disk, kernel)
    return SettledDisk(partitions, _seen_places(disk, kernel) == wanted, is_scanned)


def _is_scanned(disk: Disk) -> bool:
    # The first since kernel 6.10, the second of loop devices only.
    names = ("partscan", "loop/partscan")
    return all(sysfs.read_int(disk.sys_path, name) != 0 for name in names)


def _seen_places(disk: Disk, kernel: Kernel) -> list[tuple[int, int]]:
    return sorted((each.number, each.start) for each in _read_partitions(disk, kernel))


def _read_partitions(disk: Disk, kernel: Kernel) -> tuple[SeenPartition, ...]:
    return tuple(
        SeenPartition(
            node=kernel.dev / directory.name.replace("!", "/"),
            number=sysfs.read_int(directory, "partition") or 0,
            start=(sysfs.read_int(directory, "start") or 0) * sysfs.SIZE_UNIT,
            size=(sysfs.read_int(directory, "size") or 0) * sysfs.SIZE_UNIT,
        )
        for directory in sysfs.list_partitions(disk.sys_path)
    )


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
    said = run_and_explain(
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


@dataclass(frozen=True, slots=True)
class Ending:
    """How a disk was left: flushed, closed, and looked at by nobody any more."""

    settled: SettledDisk
    ejected: bool
    """Whether it was switched off."""

    stays_on: str | None
    """Why it was not, where that was asked for."""


def end(disk: Disk, partitions: Sequence[tuple[int, int]], *, ejects: bool) -> Ending:
    """Wait until kernel and udev know what is on the disk, then switch it off if asked to.

    The disk was written, read back and closed. Nothing here is a failure of that.
    ``partitions`` are those of the image: number, and offset of the first byte.
    """
    settled = settle(disk, partitions)
    stays_on = eject(disk) if ejects else None
    return Ending(settled, ejects and stays_on is None, stays_on)
