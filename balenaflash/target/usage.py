"""What a disk is in use for, and which disks the running system stands on.

No single source is complete: a partition under device-mapper is not in mountinfo, a loop
device over a partition is not among its holders, swap is in neither.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from balenaflash.target import sysfs
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import RUNNING_KERNEL, DeviceNumber, Kernel
from balenaflash.target.mounts import Mount, find_mount, read_mounts, read_swaps
from balenaflash.target.stack import DiskFinder, find_mounted_devices, find_node_number

_SYSTEM_MOUNT_POINTS = frozenset(
    {
        "/",
        "/boot",
        "/boot/efi",
        "/boot/firmware",  # Raspberry Pi
        "/efi",
        "/etc/hosts",  # of a container: it lies where the containers of the host do
        "/gnu",
        "/home",
        "/nix",
        "/sysroot",  # OSTree
        "/usr",
        "/var",
        # The medium of a live system, or what its root is made of.
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
"""Those whose mounts need not lead to a block device that this process can see."""

_FILESYSTEMS_IN_SYSFS = ("ext4", "f2fs", "xfs")
"""Below sys/fs each has a directory for every mounted device, in whichever mount namespace."""

_OUT_OF_SIGHT = "mounted out of sight"


class UseKind(StrEnum):
    """How a device is in use."""

    MOUNT = "mount"
    SWAP = "swap"
    CRYPT = "crypt"
    LVM = "lvm"
    RAID = "raid"
    LOOP = "loop"
    DEVICE_MAPPER = "device-mapper"
    """Device-mapper that neither cryptsetup nor LVM set up, such as multipath."""
    HOLDER = "holder"
    """Any other device that stands on it, such as bcache."""


@dataclass(frozen=True, slots=True)
class Use:
    """One reason why a device must not be written."""

    kind: UseKind
    device: str
    """The kernel's name of the disk or partition, or of what stands on it, such as ``sda1``."""
    detail: str
    """The mount point; the node of the swap area; the name or node of what stands on it."""


def system_disks(kernel: Kernel = RUNNING_KERNEL) -> Mapping[DeviceNumber, tuple[str, ...]]:
    """Whole block devices that the running system stands on, each with what is on it.

    What is on it are mount points, and ``swap``. Devices in between (device-mapper, md,
    loop) are among them. Where the root is an overlay that leads nowhere, its disk is among
    those that are mounted where this process cannot see it, as by the initramfs or the host.

    Raises:
        TargetRefusedError: the kernel's lists cannot be read.
    """
    mounts = read_mounts(kernel)
    reasons: dict[DeviceNumber, list[str]] = {}
    for mount in mounts:
        if mount.mount_point in _SYSTEM_MOUNT_POINTS:
            finder = DiskFinder(kernel, mounts)
            finder.add_mount(mount)
            _note(reasons, finder, mount.mount_point)
    for swap in read_swaps(kernel):
        finder = DiskFinder(kernel, mounts)
        finder.add_path(swap.path)
        _note(reasons, finder, "swap")
    if _is_root_opaque(mounts, kernel):
        for number in _list_mounted_out_of_sight(mounts, kernel):
            finder = DiskFinder(kernel, mounts)
            finder.add_device(number)
            _note(reasons, finder, _OUT_OF_SIGHT)
    return {number: tuple(names) for number, names in reasons.items()}


def _is_root_opaque(mounts: tuple[Mount, ...], kernel: Kernel) -> bool:
    """Whether the root's filesystem leads to no block device, though it should."""
    root = find_mount(mounts, "/")
    if root is None or root.filesystem not in _OPAQUE_FILESYSTEMS:
        return False
    finder = DiskFinder(kernel, mounts)
    finder.add_mount(root)
    return not finder.found


def _list_mounted_out_of_sight(mounts: tuple[Mount, ...], kernel: Kernel) -> Iterator[DeviceNumber]:
    seen = frozenset[DeviceNumber]().union(*(find_mounted_devices(each, kernel) for each in mounts))
    for filesystem in _FILESYSTEMS_IN_SYSFS:
        for directory in sorted((kernel.sys / "fs" / filesystem).glob("*")):
            # Beside the devices are directories for all of them, such as "features".
            number = sysfs.read_number(kernel.sys / "class/block" / directory.name)
            if number is not None and number not in seen:
                yield number


def _list_system_pools(mounts: tuple[Mount, ...]) -> Iterator[str]:
    """Names of the ZFS pools that the system is on; which disks are in them only udev knows."""
    for mount in mounts:
        if mount.mount_point in _SYSTEM_MOUNT_POINTS and mount.filesystem == "zfs":
            yield mount.source.partition("/")[0]


def _note(reasons: dict[DeviceNumber, list[str]], finder: DiskFinder, name: str) -> None:
    for number in finder.found:
        names = reasons.setdefault(number, [])
        if name not in names:
            names.append(name)


def disks_under(path: Path, kernel: Kernel = RUNNING_KERNEL) -> frozenset[DeviceNumber]:
    """Whole block devices that a file lies on; of a block device itself and those below it.

    The user named ``path``, so it is looked at wherever it is.

    Raises:
        TargetRefusedError: the kernel's lists cannot be read.
    """
    finder = DiskFinder(kernel, read_mounts(kernel))
    if path.is_block_device():
        finder.add_device(DeviceNumber.from_raw(path.stat().st_rdev))
    else:
        finder.add_path(str(path.resolve()))
    return finder.found


def is_backed_by(disk: Disk, path: Path, kernel: Kernel = RUNNING_KERNEL) -> bool:
    """Whether a loop device that the disk is, or stands on, shows the file at ``path``.

    Raises:
        TargetRefusedError: the kernel's lists cannot be read.
    """
    finder = DiskFinder(kernel, read_mounts(kernel))
    finder.add_device(disk.device_number)
    return any(_is_same(path, backing_file) for backing_file in finder.backing_files)


def _is_same(path: Path, other: str) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False  # the other was unlinked, or lies where this user may not look


class Usage:
    """What the devices of a machine are in use for, as it was when this was made.

    Not seen are mounts of other mount namespaces and programs that have a disk open; opening it
    exclusively finds them.
    """

    def __init__(self, kernel: Kernel = RUNNING_KERNEL) -> None:
        """Look at what is mounted, and what stands on what.

        Raises:
            TargetRefusedError: the kernel's lists cannot be read.
        """
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
        """Everything that uses the disk, its partitions, or what stands on them."""
        return tuple(self._find(disk.sys_path, set()))

    def of_system(self, disk: Disk) -> tuple[str, ...]:
        """What of the running system stands on the disk: as `system_disks`, and ZFS pools."""
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
        """Whether no disk was found that the running system stands on, though there is one."""
        return self._is_system_unknown

    def _list_loops(self, mounts: tuple[Mount, ...]) -> Iterator[tuple[DeviceNumber, Path]]:
        """Loop devices over block devices: the number below, the directory above."""
        for link in sorted((self._kernel.sys / "block").glob("loop*")):
            directory = link.resolve()
            backing_file = sysfs.read_backing_file(directory)
            if backing_file is not None:
                number = find_node_number(backing_file, self._kernel, mounts)
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
        for holder in sysfs.list_holders(part):
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
