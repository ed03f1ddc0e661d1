"""Unmount what is on a disk, or say who is in the way."""

import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.system_programs import find_system_program
from balenaflash.target import sysfs
from balenaflash.target.discovery import Disk
from balenaflash.target.holders import find_mount_holders, list_holders
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.mounts import Mount, read_mounts
from balenaflash.target.programs import UDISKSCTL, run_program
from balenaflash.target.stack import find_mounted_devices

_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.5)
"""Seconds before each further attempt: a file manager looks at a card just plugged in, and lets
it go again."""

_MOST_MOUNTS = 100
"""Mounts of one disk; somebody who mounts it again and again is not fought for ever."""

_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)  # proc_pid_fdinfo(5)


def unmount_all(disk: Disk, kernel: Kernel = RUNNING_KERNEL) -> tuple[str, ...]:
    """Unmount every filesystem of the disk, what was mounted last first; where they were mounted.

    Root asks the kernel, by umount(8); everybody else asks udisks2, which lets the user of the
    seat unmount what they plugged in. Somebody who uses it is given a few seconds to end.

    Raises:
        TargetRefusedError: ``target-mounted``: one stays, with the name of who holds it. Those
            after it were unmounted. Nothing was written.
    """
    points = list[str]()
    while mounts := _find_mounts(disk, kernel):
        if len(points) == _MOST_MOUNTS:
            raise _refusal(disk, mounts[-1], "somebody mounts it again and again")
        _unmount(disk, mounts[-1], kernel)
        points.append(mounts[-1].mount_point)
    return tuple(points)


def _find_mounts(disk: Disk, kernel: Kernel) -> list[Mount]:
    numbers = {sysfs.read_number(part) for part in sysfs.list_parts(disk.sys_path)}
    return [mount for mount in read_mounts(kernel) if numbers & find_mounted_devices(mount, kernel)]


def _unmount(disk: Disk, mount: Mount, kernel: Kernel) -> None:
    said = ""
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        _refuse_covered(disk, mount)
        for command in _commands(mount):
            said = run_program(command) or said
            if mount.identity not in {each.identity for each in read_mounts(kernel)}:
                return
    raise _refusal(disk, mount, _find_obstacle(mount, kernel) or said)


def _commands(mount: Mount) -> Iterator[list[str]]:
    if os.geteuid() != 0 and find_system_program(UDISKSCTL):
        yield [UDISKSCTL, "unmount", "--no-user-interaction", "--block-device", mount.source]
    # Also without udisksctl: fstab may allow it, and mounts by udisks2 have a helper of umount.
    yield ["umount", mount.mount_point]


def _refuse_covered(disk: Disk, mount: Mount) -> None:
    """Raise if another mount is reached by the same path: that one would be unmounted."""
    try:
        descriptor = os.open(mount.mount_point, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # where this user may not look; umount(8) says so in better words
    try:
        found = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii"))
    finally:
        os.close(descriptor)
    if found is not None and int(found[1]) != mount.identity:
        raise _refusal(disk, mount, "another filesystem is mounted over it")


def _find_obstacle(mount: Mount, kernel: Kernel) -> str:
    point = mount.mount_point
    inner = [
        each.mount_point
        for each in read_mounts(kernel)
        if each.mount_point.startswith(point.rstrip("/") + "/")
    ]
    if inner:
        return f"something else is mounted in it, at {', '.join(inner)}"
    return list_holders(find_mount_holders(point, kernel))


def _refusal(disk: Disk, mount: Mount, obstacle: str) -> TargetRefusedError:
    point = shlex.quote(mount.mount_point)
    hint = f"End what uses it; to see all of it: sudo fuser --verbose --mount {point}"
    if os.geteuid() != 0 and not find_system_program(UDISKSCTL):
        hint = f"An ordinary user needs udisks2 for that; else: sudo umount {point}"
    return TargetRefusedError(
        [
            Problem(
                "target-mounted",
                f"{disk.node}: stays mounted at {mount.mount_point}: {obstacle}",
                hint,
            )
        ]
    )
