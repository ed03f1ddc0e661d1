"""What the kernel and udev make of a disk after it was written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from balenaflash.target import sysfs
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.programs import run_program

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
        run_program(["udevadm", "settle", f"--timeout={_SETTLE_LIMIT}"])
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
