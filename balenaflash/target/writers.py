"""Whether an image is open for writing elsewhere while it is to be read.

What is mounted for writing changes an image at any time, and keeps part of the change in memory:
the image alone is then no consistent filesystem.
"""

import fcntl
import os
import shlex
import signal
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from balenaflash.errors import ImageError
from balenaflash.target import sysfs
from balenaflash.target.holders import (
    Holder,
    find_disk_writers,
    find_file_writers,
    list_holders,
)
from balenaflash.target.kernel import RUNNING_KERNEL, DeviceNumber, Kernel
from balenaflash.target.mounts import read_mounts
from balenaflash.target.stack import find_mounted_devices


def require_no_writer(path: Path, kernel: Kernel = RUNNING_KERNEL) -> None:
    """Return unless the file or block device at ``path`` is mounted, or open, for writing.

    Not seen are, for an ordinary user, processes of others; and mounts of other mount namespaces.

    Raises:
        ImageError: it is (``image-mounted``, ``image-open-for-writing``).
        TargetRefusedError: the kernel's lists cannot be read.
    """
    status = path.stat()
    if stat.S_ISBLK(status.st_mode):
        directory = kernel.find_directory(DeviceNumber.from_raw(status.st_rdev))
        if directory is not None:
            _require_unmounted(path, directory, kernel)
            _require_closed(path, find_disk_writers(directory, kernel))
    elif stat.S_ISREG(status.st_mode) and not _is_closed_to_writers(path):
        for directory in _find_loops(str(path.resolve()), kernel):
            _require_unmounted(path, directory, kernel)
        _require_closed(path, find_file_writers(path, kernel))


def _require_unmounted(path: Path, directory: Path, kernel: Kernel) -> None:
    for node, point in _find_mounts(directory, kernel, set()):
        raise ImageError(
            f"{path}: is mounted for writing: /dev/{node} at {point}",
            code="image-mounted",
            hint=f"Unmount it first: umount {shlex.quote(point)}",
        )


def _require_closed(path: Path, writers: Iterable[Holder]) -> None:
    names = list_holders(writers)
    if names:
        raise ImageError(
            f"{path}: is open for writing: {names}",
            code="image-open-for-writing",
            hint="Wait until that has finished, or close it there.",
        )


def _is_closed_to_writers(path: Path) -> bool:
    """Whether nobody has the file open for writing, by the word of the kernel.

    It grants a lease for reading only then, fcntl(2); and only to the owner of a file and to root,
    and not on every filesystem. So False means that it is not known.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # opening it in earnest will say why
    try:
        # Who opens it for writing before the lease is returned causes a signal. That of a lease,
        # SIGIO, would end this process; SIGURG is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False  # EAGAIN of a writer, and others of files that know no leases
    finally:
        os.close(descriptor)
    return True


def _find_loops(path: str, kernel: Kernel) -> Iterator[Path]:
    """Loop devices that can write to the file at ``path``."""
    for link in sorted((kernel.sys / "block").glob("loop*")):
        directory = link.resolve()
        # Compared as text: a backing file on a network that is down must not be looked at.
        if sysfs.read_backing_file(directory) == path and not sysfs.read_int(directory, "ro"):
            yield directory


def _find_mounts(disk: Path, kernel: Kernel, seen: set[Path]) -> Iterator[tuple[str, str]]:
    """The device and the mount point of what is mounted for writing of ``disk``, or above it."""
    if disk in seen:
        return
    seen.add(disk)
    mounts = [
        (find_mounted_devices(mount, kernel), mount)
        for mount in read_mounts(kernel)
        if "rw" in mount.options
    ]
    for part in sysfs.list_parts(disk):
        number = sysfs.read_number(part)
        for devices, mount in mounts:
            if number in devices:
                yield part.name, mount.mount_point
        for holder in sysfs.list_holders(part):
            yield from _find_mounts(holder, kernel, seen)
        for loop in _find_loops(f"/dev/{part.name}", kernel):
            yield from _find_mounts(loop, kernel, seen)
