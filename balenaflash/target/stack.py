"""What stands on what: from a file, a mount or a device down to whole disks.

Device-mapper, md and bcache name what they stand on as slaves; a loop device names its
file, a btrfs its members, an overlay its directories. Every walk is bounded: nothing is
visited twice.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from balenaflash.target import sysfs
from balenaflash.target.kernel import DeviceNumber, Kernel
from balenaflash.target.mounts import Mount, find_mount

_OVERLAY_DIRECTORIES = ("lowerdir", "upperdir", "workdir")


def find_mounted_devices(mount: Mount, kernel: Kernel) -> frozenset[DeviceNumber]:
    """The block devices that a mounted filesystem itself is on; none of an overlay or tmpfs."""
    if mount.number.major != 0:
        return frozenset({mount.number})
    if mount.filesystem == "bcachefs":  # its source is a list of all members
        members = map(kernel.find_number, mount.source.split(":"))
        return frozenset(number for number in members if number is not None)
    source = kernel.find_number(mount.source)
    if mount.filesystem == "btrfs":
        return _find_btrfs_devices(source, kernel)
    return frozenset() if source is None else frozenset({source})


def _find_btrfs_devices(source: DeviceNumber | None, kernel: Kernel) -> frozenset[DeviceNumber]:
    # mountinfo names one member of a filesystem that may have several, and "/dev/root"
    # for the one the kernel mounted itself: then every mounted btrfs may be meant.
    # A directory per mounted filesystem: fs/btrfs/sysfs.c, "devices" since kernel 3.14.
    filesystems = [
        frozenset(_read_numbers(directory.iterdir()))
        for directory in sorted((kernel.sys / "fs/btrfs").glob("*/devices"))
    ]
    if source is None:
        return frozenset().union(*filesystems)
    return frozenset({source}).union(*(members for members in filesystems if source in members))


def _read_numbers(links: Iterable[Path]) -> Iterator[DeviceNumber]:
    for link in links:
        number = sysfs.read_number(link.resolve())
        if number is not None:
            yield number


def find_node_number(path: str, kernel: Kernel, mounts: tuple[Mount, ...]) -> DeviceNumber | None:
    """The number of the block device at an absolute ``path``; ``None`` if it is none.

    Also of a node in the ``/dev`` of a chroot. Nothing outside ``/dev`` is looked at.
    """
    number = kernel.find_number(path)
    if number is not None:
        return number
    mount = find_mount(mounts, path)
    if mount is None or mount.filesystem != "devtmpfs":
        return None
    return kernel.find_number(f"/dev/{Path(path).relative_to(mount.mount_point)}")


class DiskFinder:
    """Finds the whole disks that things stand on, each device looked at once."""

    def __init__(self, kernel: Kernel, mounts: tuple[Mount, ...]) -> None:
        self._kernel = kernel
        self._mounts = mounts
        self._seen: set[Path | Mount] = set()
        self._found: set[DeviceNumber] = set()
        self._backing_files: set[str] = set()

    @property
    def found(self) -> frozenset[DeviceNumber]:
        """All whole block devices met, real and virtual: of LVM on LUKS both and the disk."""
        return frozenset(self._found)

    @property
    def backing_files(self) -> frozenset[str]:
        """What the loop devices met stand on."""
        return frozenset(self._backing_files)

    def add_path(self, path: str) -> None:
        """Follow the file or block device at an absolute path."""
        number = find_node_number(path, self._kernel, self._mounts)
        if number is not None:
            self.add_device(number)
        elif (mount := find_mount(self._mounts, path)) is not None:
            self.add_mount(mount)

    def add_mount(self, mount: Mount) -> None:
        """Follow a mounted filesystem."""
        if mount in self._seen:
            return  # an overlay whose directories lie below itself, as seen in a container
        self._seen.add(mount)
        for number in find_mounted_devices(mount, self._kernel):
            self.add_device(number)
        for option in mount.options:
            name, _, value = option.partition("=")
            if mount.filesystem == "overlay" and name.rstrip("+") in _OVERLAY_DIRECTORIES:
                for path in value.split(":"):
                    self.add_path(path)

    def add_device(self, number: DeviceNumber) -> None:
        """Follow a block device."""
        directory = self._kernel.find_directory(number)
        if directory is not None:
            self._add_directory(directory)

    def _add_directory(self, directory: Path) -> None:
        if directory in self._seen:
            return
        self._seen.add(directory)
        disk = sysfs.find_whole_disk(directory)
        self._found.update(_read_numbers(_list_whole(disk)))
        for slave in sysfs.list_slaves(directory):
            self._add_directory(slave)
        if disk != directory:
            self._add_directory(disk)
        elif (backing_file := sysfs.read_backing_file(disk)) is not None:
            self._backing_files.add(backing_file)
            self.add_path(backing_file)


def _list_whole(disk: Path) -> list[Path]:
    return [part for part in sysfs.list_parts(disk) if not sysfs.is_partition(part)]
