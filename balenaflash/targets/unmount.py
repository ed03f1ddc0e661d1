"""Unmount the filesystems of a disk, and find the processes that use a disk or an image.

The kernel reports only that a device is busy. The open files of each process are in /proc, proc(5);
an ordinary user sees only those of their own processes.

A filesystem mounted for writing may change an image at any time, and keeps part of the change in
memory: the image alone is then not consistent.
"""

import fcntl
import os
import re
import shlex
import signal
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import ImageError, TargetRefusedError, refusal
from balenaflash.programs import UDISKSCTL, find_system_program, run_and_explain
from balenaflash.targets import sysfs
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, Kernel
from balenaflash.targets.usage import Mount, find_mounted_devices, parse_mountinfo, read_mounts

_OPEN_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)  # proc_pid_fdinfo(5)

_SHOWN = 5
"""Number of holders named one by one; a desktop may have dozens."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process or a device that keeps a filesystem, a disk or a file busy."""

    name: str
    """The command and number of a process; the node of a device."""

    deed: str
    """The kind of use, such as ``has /media/x/file open``."""

    def __str__(self) -> str:
        return f"{self.name} {self.deed}"


def describe_holders(holders: Iterable[Holder]) -> str:
    """The first few holders in words; empty if there are none."""
    texts = list(dict.fromkeys(map(str, holders)))
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return "; ".join([*texts[:_SHOWN], *more])


def find_mount_holders(point: str, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Holders of the filesystem that is mounted at ``point``, as far as this user may see."""
    return (*_find_processes_below(point, kernel), *_find_loops_below(point, kernel))


def find_disk_writers(sys_path: Path, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Other processes that have a disk or a part of it open for writing.

    A virtual machine has its disk open in this way, and makes no other claim to it.
    """
    numbers = _list_numbers(sys_path)
    return tuple(
        holder
        for process in _list_others(kernel)
        for holder in _find_open_nodes(process, numbers, kernel, for_writing=True)
    )


def find_disk_holders(sys_path: Path, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Processes that have a disk or a part of it open, or mounted in another mount namespace."""
    numbers = _list_numbers(sys_path)
    holders = list[Holder]()
    seen = {_read_link(kernel.proc / "self/ns/mnt")}
    for process in _list_others(kernel):
        holders += _find_open_nodes(process, numbers, kernel)
        namespace = _read_link(process / "ns/mnt")
        # An ordinary user cannot read the namespace of another user's process.
        if namespace is None or namespace not in seen:
            seen.add(namespace)
            holders += _find_own_mounts(process, numbers)
    return tuple(holders)


def _list_numbers(sys_path: Path) -> set[DeviceNumber | None]:
    numbers = {sysfs.read_number(part) for part in sysfs.list_parts(sys_path)}
    return numbers - {None}


def _list_others(kernel: Kernel) -> list[Path]:
    return [each for each in _list_processes(kernel) if int(each.name) != os.getpid()]


def _find_file_writers(path: Path, kernel: Kernel) -> Iterator[Holder]:
    """Other processes that have the file at ``path`` open for writing."""
    status, name = path.stat(), str(path.resolve())
    for process in _list_others(kernel):
        for link in _list(process / "fd"):
            # Only a file of that name is examined: another may be on a network that is down.
            if _read_link(link) != name or not _is_for_writing(process / "fdinfo" / link.name):
                continue
            try:
                is_same = os.path.samestat(link.stat(), status)
            except OSError:
                continue  # closed meanwhile
            if is_same:
                yield Holder(_describe_process(process), f"has {path} open")


_DEEDS = {"cwd": "works in {}", "root": "has its root in {}", "exe": "is run from {}"}
"""Links in the directory of a process, proc(5), and what they show."""


def _find_processes_below(point: str, kernel: Kernel) -> Iterator[Holder]:
    own_namespace = _read_link(kernel.proc / "self/ns/mnt")
    for process in _list_processes(kernel):
        # The same path is another file in another mount namespace.
        if _read_link(process / "ns/mnt") not in {own_namespace, None}:
            continue
        paths = [(_read_link(process / link), deed) for link, deed in _DEEDS.items()]
        opened = {path for path in map(_read_link, _list(process / "fd")) if path is not None}
        paths += [(path, "has {} open") for path in sorted(opened | _read_mapped(process))]
        for path, deed in paths:
            if path is not None and _is_below(path, point):
                yield Holder(_describe_process(process), deed.format(path))


def _read_mapped(process: Path) -> set[str]:
    """Files mapped into a process: a library stays in use after its descriptor is closed."""
    # address perms offset dev inode path
    return {
        os.fsdecode(fields[5])
        for line in _read(process / "maps").split(b"\n")
        if len(fields := line.split(None, 5)) == 6  # noqa: PLR2004 - the columns above
    }


def _find_loops_below(point: str, kernel: Kernel) -> Iterator[Holder]:
    for directory, backing_file in sysfs.list_loops(kernel):
        if _is_below(backing_file, point):
            yield Holder(f"/dev/{directory.name}", f"is a loop device of {backing_file}")


def _find_open_nodes(
    process: Path,
    numbers: set[DeviceNumber | None],
    kernel: Kernel,
    *,
    for_writing: bool = False,
) -> Iterator[Holder]:
    for link in _list(process / "fd"):
        path = _read_link(link)
        # Only nodes are examined: a file on a network that is down would block this process.
        if path is None or kernel.locate_node(path) is None:
            continue
        try:
            status = link.stat()
        except OSError:
            continue  # closed meanwhile
        if for_writing and not _is_for_writing(process / "fdinfo" / link.name):
            continue
        if stat.S_ISBLK(status.st_mode) and DeviceNumber.from_raw(status.st_rdev) in numbers:
            yield Holder(_describe_process(process), f"has {path} open")


def _is_for_writing(fdinfo: Path) -> bool:
    flags = _OPEN_FLAGS.search(_read(fdinfo))
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _find_own_mounts(process: Path, numbers: set[DeviceNumber | None]) -> Iterator[Holder]:
    for mount in parse_mountinfo(_read(process / "mountinfo")):
        if mount.number in numbers:
            deed = f"has it mounted at {mount.mount_point}, in a mount namespace of its own"
            yield Holder(_describe_process(process), deed)


def _list_processes(kernel: Kernel) -> list[Path]:
    return [each for each in _list(kernel.proc) if each.name.isdecimal()]


def _describe_process(process: Path) -> str:
    command = os.fsdecode(_read(process / "comm")).strip() or "a process"
    return f"{command} (process {process.name})"


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


# Each of these may fail for a process that has ended or belongs to another user.


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read_link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None


_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.5)
"""Seconds before each further attempt: a file manager reads a card for a moment when it is
plugged in."""

_MOST_MOUNTS = 100
"""Mounts of one disk, after which a program that mounts it again and again is reported."""

_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)  # proc_pid_fdinfo(5)


def unmount_all(disk: Disk, kernel: Kernel = RUNNING_KERNEL) -> tuple[str, ...]:
    """Unmount all filesystems of the disk, the latest first, and return their mount points.

    Root uses umount(8); other users use udisks2, by which the user at the machine may unmount what
    they plugged in. Programs that use a filesystem get a few seconds to end.

    Raises:
        TargetRefusedError: ``target-mounted``: one filesystem stays; the message names its
            holders. Those mounted later were unmounted. Nothing was written.
    """
    points = list[str]()
    while mounts := _find_mounts(disk, kernel):
        if len(points) == _MOST_MOUNTS:
            raise _stays_mounted(disk, mounts[-1], "another program mounts it again and again")
        _unmount(disk, mounts[-1], kernel)
        points.append(mounts[-1].mount_point)
    return tuple(points)


def _find_mounts(disk: Disk, kernel: Kernel) -> list[Mount]:
    numbers = {sysfs.read_number(part) for part in sysfs.list_parts(disk.sys_path)}
    return [mount for mount in read_mounts(kernel) if numbers & find_mounted_devices(mount, kernel)]


def _unmount(disk: Disk, mount: Mount, kernel: Kernel) -> None:
    reason = ""
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        _refuse_covered(disk, mount)
        for command in _commands(mount):
            reason = run_and_explain(command) or reason
            if mount.identity not in {each.identity for each in read_mounts(kernel)}:
                return
    raise _stays_mounted(disk, mount, _find_obstacle(mount, kernel) or reason)


def _commands(mount: Mount) -> Iterator[list[str]]:
    if os.geteuid() != 0 and find_system_program(UDISKSCTL):
        yield [UDISKSCTL, "unmount", "--no-user-interaction", "--block-device", mount.source]
    # Also for an ordinary user: fstab may allow it, or umount has a helper for mounts by udisks2.
    yield ["umount", mount.mount_point]


def _refuse_covered(disk: Disk, mount: Mount) -> None:
    """Raise if the path leads to another mount: that one would be unmounted."""
    try:
        descriptor = os.open(mount.mount_point, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # umount(8) reports the reason
    try:
        found = _MOUNT_ID.search(Path(f"/proc/self/fdinfo/{descriptor}").read_text("ascii"))
    finally:
        os.close(descriptor)
    if found is not None and int(found[1]) != mount.identity:
        raise _stays_mounted(disk, mount, "another filesystem is mounted over it")


def _find_obstacle(mount: Mount, kernel: Kernel) -> str:
    point = mount.mount_point
    paths = [each.mount_point for each in read_mounts(kernel) if each.mount_point != point]
    inner = [path for path in paths if _is_below(path, point)]
    if inner:
        return f"other filesystems are mounted in it, at {', '.join(inner)}"
    return describe_holders(find_mount_holders(point, kernel))


def _stays_mounted(disk: Disk, mount: Mount, obstacle: str) -> TargetRefusedError:
    point = shlex.quote(mount.mount_point)
    hint = f"End the programs that use it; to list them: sudo fuser --verbose --mount {point}"
    if os.geteuid() != 0 and not find_system_program(UDISKSCTL):
        hint = f"Without udisks2 only root may unmount it: sudo umount {point}"
    message = f"{disk.node}: stays mounted at {mount.mount_point}: {obstacle}"
    return refusal("target-mounted", message, hint)


def require_no_writer(path: Path | None, kernel: Kernel = RUNNING_KERNEL) -> None:
    """Return if the file or block device at ``path`` is not mounted, or open, for writing.

    Mounts of other mount namespaces are not seen; for an ordinary user, neither are the processes
    of other users.

    Raises:
        ImageError: it is mounted or open for writing (``image-mounted``,
            ``image-open-for-writing``).
        TargetRefusedError: the kernel's lists cannot be read.
    """
    if path is None:
        return  # the image has no file: it comes by a pipe or over the network
    status = path.stat()
    if stat.S_ISBLK(status.st_mode):
        directory = kernel.find_directory(DeviceNumber.from_raw(status.st_rdev))
        if directory is not None:
            _require_unmounted(path, directory, kernel)
            _require_closed(path, find_disk_writers(directory, kernel))
    elif stat.S_ISREG(status.st_mode) and not _is_closed_to_writers(path):
        for directory in _find_loops(str(path.resolve()), kernel):
            _require_unmounted(path, directory, kernel)
        _require_closed(path, _find_file_writers(path, kernel))


def _require_unmounted(path: Path, directory: Path, kernel: Kernel) -> None:
    for node, point in _find_mounts_below(directory, kernel, set()):
        raise ImageError(
            f"{path}: is mounted for writing: /dev/{node} at {point}",
            code="image-mounted",
            hint=f"Unmount it first: umount {shlex.quote(point)}",
        )


def _require_closed(path: Path, writers: Iterable[Holder]) -> None:
    names = describe_holders(writers)
    if names:
        raise ImageError(
            f"{path}: is open for writing: {names}",
            code="image-open-for-writing",
            hint="Wait until that program has finished, or end it.",
        )


def _is_closed_to_writers(path: Path) -> bool:
    """True if no process has the file open for writing; False if it may be.

    The kernel grants a lease for reading only then, fcntl(2); and only to root and the owner of the
    file, and not on every filesystem.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # opening it to read the image reports the reason
    try:
        # A process that opens it for writing before the lease is returned causes a signal. By
        # default it is SIGIO, which would end this process; SIGURG is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False  # EAGAIN: there is a writer; others: the file cannot have leases
    finally:
        os.close(descriptor)
    return True


def _find_loops(path: str, kernel: Kernel) -> Iterator[Path]:
    """Loop devices that can write to the file at ``path``."""
    for directory, backing_file in sysfs.list_loops(kernel):
        # Compared as text: a backing file on a network that is down must not be examined.
        if backing_file == path and not sysfs.read_int(directory, "ro"):
            yield directory


def _find_mounts_below(disk: Path, kernel: Kernel, seen: set[Path]) -> Iterator[tuple[str, str]]:
    """Device and mount point of each filesystem mounted for writing on ``disk`` or above it."""
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
        for holder in sysfs.list_upper_devices(part):
            yield from _find_mounts_below(holder, kernel, seen)
        for loop in _find_loops(f"/dev/{part.name}", kernel):
            yield from _find_mounts_below(loop, kernel, seen)
