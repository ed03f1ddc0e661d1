"""The uses of disks, and the disks that the running system is on.

Formats: Documentation/filesystems/proc.rst of the kernel, 3.5 (mountinfo), and mm/swapfile.c
(swaps). White space and backslashes in paths are three octal digits after a backslash.

The lower devices of device-mapper, md and bcache are their slaves in sysfs; a loop device has its
file, a btrfs its members, an overlay its directories. Every walk ends: nothing is visited twice.

No single list is complete: a partition under device-mapper is not in mountinfo, a loop device over
a partition is not among its holders, swap is in neither. If the lists of mounts and swap areas
cannot be read, the functions raise a `TargetRefusedError`: any disk may then be in use.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from balenaflash.durable import is_same_file
from balenaflash.errors import refusal
from balenaflash.targets import sysfs
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, DeviceNumber, Kernel

_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_COLUMN_GAP = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem."""

    identity: int
    """Number that no other mount has as long as this one exists."""
    number: DeviceNumber
    """The block device; ``0:N`` for btrfs, overlay and others without one of their own."""
    mount_point: str
    filesystem: str
    source: str
    """The mounted node, or any text."""
    options: tuple[str, ...]
    """Options of the filesystem, such as ``lowerdir=...``."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap area."""

    path: str
    is_file: bool


def read_mounts(kernel: Kernel) -> tuple[Mount, ...]:
    """All mounts that this process can see, the oldest first."""
    return parse_mountinfo(_read(kernel.proc / "self/mountinfo"))


def read_swaps(kernel: Kernel) -> tuple[Swap, ...]:
    """All swap areas in use; none on a kernel without swap."""
    path = kernel.proc / "swaps"
    return parse_swaps(_read(path)) if path.exists() else ()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path}: {error.strerror}; every disk may be in use"
        raise refusal("usage-unknown", message, "Mount /proc first.") from error


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """The mounts listed in the text of ``/proc/self/mountinfo``."""
    return tuple(_parse_mount(line) for line in content.split(b"\n") if line)


def _parse_mount(line: bytes) -> Mount:
    # 36 35 98:0 /subdirectory /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    # There are any number of fields between the mount options and the dash.
    before, _, after = line.partition(b" - ")
    identity, _parent, number, _root, mount_point, *_ = before.split(b" ")
    filesystem, source, options = after.split(b" ", 2)
    return Mount(
        identity=int(identity),
        number=DeviceNumber.parse(number.decode()),
        mount_point=_unescape(mount_point),
        filesystem=_unescape(filesystem),
        source=_unescape(source),
        options=tuple(_unescape(option) for option in options.split(b",")),
    )


def parse_swaps(content: bytes) -> tuple[Swap, ...]:
    """The areas listed in the text of ``/proc/swaps``."""
    # Not splitlines: a path may contain a carriage return. The first line has the headings.
    lines = filter(None, content.split(b"\n")[1:])
    columns = (_COLUMN_GAP.split(line) for line in lines)
    return tuple(Swap(_unescape(path), is_file=kind == b"file") for path, kind, *_ in columns)


def _unescape(field: bytes) -> str:
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda escape: bytes([int(escape[1], 8)]), field))


def find_mount(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that contains the file at an absolute ``path``."""
    found = None
    for mount in mounts:
        # A later mount on the same point hides an earlier one, hence "not shorter".
        if Path(path).is_relative_to(mount.mount_point) and (
            found is None or len(mount.mount_point) >= len(found.mount_point)
        ):
            found = mount
    return found


_OVERLAY_DIRECTORIES = ("lowerdir", "upperdir", "workdir")


def find_mounted_devices(mount: Mount, kernel: Kernel) -> frozenset[DeviceNumber]:
    """The block devices that a mounted filesystem is on; none for an overlay or tmpfs."""
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
    # mountinfo has one member of a filesystem that may have several. For the one that the kernel
    # mounted itself it has "/dev/root", which may be any mounted btrfs.
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


def _find_node_number(path: str, kernel: Kernel, mounts: tuple[Mount, ...]) -> DeviceNumber | None:
    """The number of the block device at an absolute ``path``; ``None`` if it is not one.

    ``path`` may be in the ``/dev`` of a chroot. Nothing outside ``/dev`` is examined.
    """
    number = kernel.find_number(path)
    if number is not None:
        return number
    mount = find_mount(mounts, path)
    if mount is None or mount.filesystem != "devtmpfs":
        return None
    return kernel.find_number(f"/dev/{Path(path).relative_to(mount.mount_point)}")


class _DiskFinder:
    """Finds the whole disks below files, mounts and devices; each device is examined once."""

    def __init__(self, kernel: Kernel, mounts: tuple[Mount, ...]) -> None:
        self._kernel = kernel
        self._mounts = mounts
        self._seen: set[Path | Mount] = set()

        self.found: set[DeviceNumber] = set()
        """All whole block devices, real and virtual: for LVM on LUKS both and the disk."""

        self.backing_files: set[str] = set()
        """Files and block devices of the loop devices that were found."""

    def add_path(self, path: str) -> None:
        """Follow the file or block device at an absolute path."""
        number = _find_node_number(path, self._kernel, self._mounts)
        if number is not None:
            self.add_device(number)
        elif (mount := find_mount(self._mounts, path)) is not None:
            self.add_mount(mount)

    def add_mount(self, mount: Mount) -> None:
        """Follow a mounted filesystem."""
        if mount in self._seen:
            return  # an overlay whose directories are below itself, as in a container
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
        whole = (part for part in sysfs.list_parts(disk) if not sysfs.is_partition(part))
        self.found.update(_read_numbers(whole))
        for slave in sysfs.list_lower_devices(directory):
            self._add_directory(slave)
        if disk != directory:
            self._add_directory(disk)
        elif (backing_file := sysfs.read_backing_file(disk)) is not None:
            self.backing_files.add(backing_file)
            self.add_path(backing_file)


_SYSTEM_MOUNT_POINTS = frozenset(
    {
        "/",
        "/boot",
        "/boot/efi",
        "/boot/firmware",  # Raspberry Pi
        "/efi",
        "/etc/hosts",  # in a container: it is on the disk that holds the host's containers
        "/gnu",
        "/home",
        "/nix",
        "/sysroot",  # OSTree
        "/usr",
        "/var",
        # The medium of a live system, or the lower layers of its root.
        "/cdrom",  # casper (Ubuntu)
        "/lib/live/mount/medium",  # live-boot (Debian), older
        "/media/root-ro",  # overlayroot, raspi-config
        "/rofs",  # casper
        "/run/archiso/bootmnt",
        "/run/initramfs/live",  # dracut (Fedora, openSUSE)
        "/run/live/medium",  # live-boot
    }
)

_OPAQUE_FILESYSTEMS = frozenset({"aufs", "overlay", "zfs"})
"""Filesystems whose mounts need not lead to a block device that this process can see."""

_FILESYSTEMS_IN_SYSFS = ("ext4", "f2fs", "xfs")
"""Each has a directory below sys/fs for every mounted device of all mount namespaces."""

_OUT_OF_SIGHT = "mounted out of sight"


class UseKind(StrEnum):
    """A kind of use."""

    MOUNT = "mount"
    SWAP = "swap"
    CRYPT = "crypt"
    LVM = "lvm"
    RAID = "raid"
    LOOP = "loop"
    DEVICE_MAPPER = "device-mapper"
    """Device-mapper not set up by cryptsetup or LVM, such as multipath."""
    HOLDER = "holder"
    """Any other upper device, such as bcache."""


@dataclass(frozen=True, slots=True)
class Use:
    """A use of a disk or a partition, for which it must not be written."""

    kind: UseKind
    device: str
    """The kernel's name of the disk, partition or upper device, such as ``sda1``."""
    detail: str
    """The mount point; the node of the swap area; the name or node of the upper device."""


def system_disks(kernel: Kernel = RUNNING_KERNEL) -> Mapping[DeviceNumber, tuple[str, ...]]:
    """Whole block devices that the running system is on, with its mount points, or ``swap``.

    Devices in between (device-mapper, md, loop) are among them. If the root is an overlay without
    a visible disk, all disks count that are mounted where this process cannot see it, as by the
    initramfs or the host.
    """
    mounts = read_mounts(kernel)
    reasons: dict[DeviceNumber, list[str]] = {}
    for mount in mounts:
        if mount.mount_point in _SYSTEM_MOUNT_POINTS:
            finder = _DiskFinder(kernel, mounts)
            finder.add_mount(mount)
            _note(reasons, finder, mount.mount_point)
    for swap in read_swaps(kernel):
        finder = _DiskFinder(kernel, mounts)
        finder.add_path(swap.path)
        _note(reasons, finder, "swap")
    if _is_root_opaque(mounts, kernel):
        for number in _list_mounted_out_of_sight(mounts, kernel):
            finder = _DiskFinder(kernel, mounts)
            finder.add_device(number)
            _note(reasons, finder, _OUT_OF_SIGHT)
    return {number: tuple(names) for number, names in reasons.items()}


def _is_root_opaque(mounts: tuple[Mount, ...], kernel: Kernel) -> bool:
    """True if the root is on a filesystem that leads to no visible block device."""
    root = find_mount(mounts, "/")
    if root is None or root.filesystem not in _OPAQUE_FILESYSTEMS:
        return False
    finder = _DiskFinder(kernel, mounts)
    finder.add_mount(root)
    return not finder.found


def _list_mounted_out_of_sight(mounts: tuple[Mount, ...], kernel: Kernel) -> Iterator[DeviceNumber]:
    seen = frozenset[DeviceNumber]().union(*(find_mounted_devices(each, kernel) for each in mounts))
    for filesystem in _FILESYSTEMS_IN_SYSFS:
        for directory in sorted((kernel.sys / "fs" / filesystem).glob("*")):
            # Others are not devices, such as "features".
            number = sysfs.read_number(kernel.sys / "class/block" / directory.name)
            if number is not None and number not in seen:
                yield number


def _list_system_pools(mounts: tuple[Mount, ...]) -> Iterator[str]:
    """Names of the ZFS pools that the system is on; only udev knows the disks of a pool."""
    for mount in mounts:
        if mount.mount_point in _SYSTEM_MOUNT_POINTS and mount.filesystem == "zfs":
            yield mount.source.partition("/")[0]


def _note(reasons: dict[DeviceNumber, list[str]], finder: _DiskFinder, name: str) -> None:
    for number in finder.found:
        names = reasons.setdefault(number, [])
        if name not in names:
            names.append(name)


def disks_under(path: Path, kernel: Kernel = RUNNING_KERNEL) -> frozenset[DeviceNumber]:
    """Whole block devices below a file; for a block device itself and those below it.

    ``path`` is examined wherever it is, because the user named it.
    """
    finder = _DiskFinder(kernel, read_mounts(kernel))
    if path.is_block_device():
        finder.add_device(DeviceNumber.from_raw(path.stat().st_rdev))
    else:
        finder.add_path(str(path.resolve()))
    return frozenset(finder.found)


def is_backed_by(disk: Disk, path: Path, kernel: Kernel = RUNNING_KERNEL) -> bool:
    """True if the disk is, or is above, a loop device of the file at ``path``."""
    finder = _DiskFinder(kernel, read_mounts(kernel))
    finder.add_device(disk.device_number)
    return any(is_same_file(path, backing_file) for backing_file in finder.backing_files)


class Usage:
    """The uses of all devices of a machine, as they were when this object was made.

    Mounts of other mount namespaces, and programs that have a disk open, are not seen; opening the
    disk exclusively finds them.
    """

    def __init__(self, kernel: Kernel = RUNNING_KERNEL) -> None:
        self._kernel = kernel
        mounts = read_mounts(kernel)
        self._mounts = [(find_mounted_devices(mount, kernel), mount) for mount in mounts]
        self._swaps = [
            (kernel.find_number(swap.path), swap.path)
            for swap in read_swaps(kernel)
            if not swap.is_file
        ]
        self._loops = list(self._list_loops(mounts))
        self._system = system_disks(kernel)
        self._pools = frozenset(_list_system_pools(mounts))
        is_found = kernel.has_udevd if self._pools else bool(self._system)
        self._is_system_unknown = not is_found and _is_root_opaque(mounts, kernel)

    def of(self, disk: Disk) -> tuple[Use, ...]:
        """All uses of the disk, its partitions, and the devices above them."""
        return tuple(self._find(disk.sys_path, set()))

    def of_system(self, disk: Disk) -> tuple[str, ...]:
        """Parts of the running system on the disk: those of `system_disks`, and ZFS pools."""
        contents = [(disk.filesystem, disk.label)]
        contents += [(each.filesystem, each.label) for each in disk.partitions]
        pools = [
            f"the pool {label or 'of ZFS'}"
            for filesystem, label in dict.fromkeys(contents)
            if filesystem == "zfs_member" and (label in self._pools or (self._pools and not label))
        ]
        return (*self._system.get(disk.device_number, ()), *pools)

    @property
    def is_system_unknown(self) -> bool:
        """True if no disk of the running system was found, although there is one."""
        return self._is_system_unknown

    def _list_loops(self, mounts: tuple[Mount, ...]) -> Iterator[tuple[DeviceNumber, Path]]:
        """Loop devices over block devices: number of the lower, directory of the loop device."""
        for directory, backing_file in sysfs.list_loops(self._kernel):
            number = _find_node_number(backing_file, self._kernel, mounts)
            if number is not None:
                yield number, directory

    def _find(self, disk: Path, seen: set[Path]) -> Iterator[Use]:
        if disk in seen:
            return
        seen.add(disk)
        for part in sysfs.list_parts(disk):
            yield from self._find_direct(part)
            for holder, use in self._find_holders(part):
                yield use
                yield from self._find(sysfs.find_whole_disk(holder), seen)

    def _find_direct(self, part: Path) -> Iterator[Use]:
        number = sysfs.read_number(part)
        for devices, mount in self._mounts:
            if number in devices:
                yield Use(UseKind.MOUNT, part.name, mount.mount_point)
        for swap_number, path in self._swaps:
            if number is not None and number == swap_number:
                yield Use(UseKind.SWAP, part.name, path)

    def _find_holders(self, part: Path) -> Iterator[tuple[Path, Use]]:
        number = sysfs.read_number(part)
        for holder in sysfs.list_upper_devices(part):
            kind, detail = _classify(holder)
            yield holder, Use(kind, part.name, detail)
        for below, loop in self._loops:
            if below == number:
                yield loop, Use(UseKind.LOOP, part.name, f"/dev/{loop.name}")


_MAPPER_KINDS = {"CRYPT": UseKind.CRYPT, "LVM": UseKind.LVM}
"""First part of a device-mapper UUID, as cryptsetup and LVM set it."""


def _classify(holder: Path) -> tuple[UseKind, str]:
    name = sysfs.read_attribute(holder, "dm/name")
    if name is not None:
        prefix, _, _ = (sysfs.read_attribute(holder, "dm/uuid") or "").partition("-")
        return _MAPPER_KINDS.get(prefix, UseKind.DEVICE_MAPPER), name
    is_raid = (holder / "md").is_dir()
    return UseKind.RAID if is_raid else UseKind.HOLDER, f"/dev/{holder.name.replace('!', '/')}"
