"""Which processes keep a disk or a mounted filesystem busy.

The kernel says only that somebody does. What each process has open stands in /proc, proc(5),
which shows an ordinary user no more than their own.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.target import sysfs
from balenaflash.target.kernel import RUNNING_KERNEL, DeviceNumber, Kernel
from balenaflash.target.mounts import parse_mountinfo

_OPEN_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)  # proc_pid_fdinfo(5)

_SHOWN = 5
"""Holders named one by one; a desktop may have dozens."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, or a device, that keeps something busy."""

    name: str
    """The command and number of a process; the node of a device."""

    deed: str
    """What it does, such as ``has /media/x/file open``."""

    def __str__(self) -> str:
        return f"{self.name} {self.deed}"


def list_holders(holders: Iterable[Holder]) -> str:
    """The first few in words; an empty text if there are none."""
    texts = list(dict.fromkeys(map(str, holders)))
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return "; ".join([*texts[:_SHOWN], *more])


def find_mount_holders(point: str, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Who keeps the filesystem at ``point`` from being unmounted, as far as this user may see."""
    return (*_find_processes_below(point, kernel), *_find_loops_below(point, kernel))


def find_disk_writers(sys_path: Path, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Which other processes have a disk or a part of it open for writing.

    A virtual machine has its disk open so, and makes no other claim to it.
    """
    numbers = _list_numbers(sys_path)
    return tuple(
        holder
        for process in _list_others(kernel)
        for holder in _find_open_nodes(process, numbers, kernel, for_writing=True)
    )


def find_disk_holders(sys_path: Path, kernel: Kernel = RUNNING_KERNEL) -> tuple[Holder, ...]:
    """Who has a disk or a part of it open, or mounted in another mount namespace."""
    numbers = _list_numbers(sys_path)
    holders = list[Holder]()
    seen = {_read_link(kernel.proc / "self/ns/mnt")}
    for process in _list_others(kernel):
        holders += _find_open_nodes(process, numbers, kernel)
        namespace = _read_link(process / "ns/mnt")
        # Of somebody else's process an ordinary user does not learn the namespace.
        if namespace is None or namespace not in seen:
            seen.add(namespace)
            holders += _find_own_mounts(process, numbers)
    return tuple(holders)


def _list_numbers(sys_path: Path) -> set[DeviceNumber | None]:
    numbers = {sysfs.read_number(part) for part in sysfs.list_parts(sys_path)}
    return numbers - {None}


def _list_others(kernel: Kernel) -> list[Path]:
    return [each for each in _list_processes(kernel) if int(each.name) != os.getpid()]


def find_file_writers(path: Path, kernel: Kernel = RUNNING_KERNEL) -> Iterator[Holder]:
    """Other processes that have the file at ``path`` open for writing, as `find_disk_writers`."""
    status, name = path.stat(), str(path.resolve())
    for process in _list_others(kernel):
        for link in _list(process / "fd"):
            # Looked at more closely only then: another file may be on a network that is down.
            if _read_link(link) != name or not _is_for_writing(process / "fdinfo" / link.name):
                continue
            try:
                is_same = os.path.samestat(link.stat(), status)
            except OSError:
                continue  # closed meanwhile
            if is_same:
                yield Holder(_describe_process(process), f"has {path} open")


def _find_processes_below(point: str, kernel: Kernel) -> Iterator[Holder]:
    own_namespace = _read_link(kernel.proc / "self/ns/mnt")
    for process in _list_processes(kernel):
        # In another mount namespace the same path is another file.
        if _read_link(process / "ns/mnt") not in {own_namespace, None}:
            continue
        yield from _find_paths_below(process, point)


def _find_paths_below(process: Path, point: str) -> Iterator[Holder]:
    name = _describe_process(process)
    for link, deed in (("cwd", "works in"), ("root", "has its root in"), ("exe", "is run from")):
        path = _read_link(process / link)
        if path is not None and _is_below(path, point):
            yield Holder(name, f"{deed} {path}")
    opened = {path for path in map(_read_link, _list(process / "fd")) if path is not None}
    for path in sorted(opened | _read_mapped(process)):
        if _is_below(path, point):
            yield Holder(name, f"has {path} open")


def _read_mapped(process: Path) -> set[str]:
    """Files in the memory of a process: a library stays in use after its descriptor is closed."""
    # address perms offset dev inode path
    return {
        os.fsdecode(fields[5])
        for line in _read(process / "maps").split(b"\n")
        if len(fields := line.split(None, 5)) == 6  # noqa: PLR2004 - the columns above
    }


def _find_loops_below(point: str, kernel: Kernel) -> Iterator[Holder]:
    for link in sorted((kernel.sys / "block").glob("loop*")):
        backing_file = sysfs.read_backing_file(link.resolve())
        if backing_file is not None and _is_below(backing_file, point):
            yield Holder(f"/dev/{link.name}", f"shows {backing_file}")


def _find_open_nodes(
    process: Path,
    numbers: set[DeviceNumber | None],
    kernel: Kernel,
    *,
    for_writing: bool = False,
) -> Iterator[Holder]:
    for link in _list(process / "fd"):
        path = _read_link(link)
        # Only nodes are looked at more closely: a file on a network that is down would hang.
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


# Each of these may fail for a process that has ended meanwhile or belongs to somebody else.


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
