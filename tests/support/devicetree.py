"""Trees of sysfs, procfs and /dev as other machines have them, built in a directory."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balenaflash.targets.disks import Disk, list_disks
from balenaflash.targets.sysfs import Kernel
from balenaflash.targets.udev import UdevRecord

GIB_SECTORS = 2 * 1024 * 1024
"""The attribute ``size`` of a GiB: it counts in 512 bytes."""

# The directories of disks in kernel 6.1, as `udevadm info --query=path` prints them.
NVME = "pci0000:00/0000:00:07.0/nvme/nvme0/nvme0n1"
SATA = "pci0000:00/0000:00:1f.2/ata1/host1/target1:0:0/1:0:0:0/block/sda"
SATA_2 = "pci0000:00/0000:00:1f.2/ata2/host2/target2:0:0/2:0:0:0/block/sdb"
OPTICAL = "pci0000:00/0000:00:1f.2/ata3/host3/target3:0:0/3:0:0:0/block/sr0"
USB_STICK = "pci0000:00/0000:00:02.0/usb2/2-1/2-1:1.0/host7/target7:0:0/7:0:0:0/block/sdd"
USB_BEHIND_HUB = (
    "pci0000:00/0000:00:02.0/usb1/1-2/1-2.3/1-2.3:1.0/host8/target8:0:0/8:0:0:0/block/sde"
)
SD_READER = "pci0000:00/0000:00:09.0/mmc_host/mmc0/mmc0:4567/block/mmcblk0"
EMMC = "platform/soc/fe340000.mmc/mmc_host/mmc1/mmc1:0001/block/mmcblk1"
USB_MMC_READER = (
    "pci0000:00/0000:00:14.0/usb1/1-4/1-4:1.0/rtsx_usb_sdmmc.2.auto/"
    "mmc_host/mmc2/mmc2:aaaa/block/mmcblk2"
)
VIRTIO = "pci0000:00/0000:00:08.0/virtio5/block/vda"
VIRTIO_SCSI = "pci0000:00/0000:00:0a.0/virtio6/host0/target0:0:0/0:0:0:0/block/sdf"
SAS = "pci0000:00/0000:01:00.0/host9/port-9:0/end_device-9:0/target9:0:0/9:0:0:0/block/sdg"
SCSI_DEBUG = "pseudo_0/adapter0/host11/target11:0:0/11:0:0:0/block/sdh"
NVME_MULTIPATH = "virtual/nvme-subsystem/nvme-subsys1/nvme1n1"
NVME_HIDDEN_PATH = "pci0000:00/0000:00:0b.0/nvme/nvme1/nvme1c1n1"
FLOPPY = "platform/floppy.0/block/fd0"

_SUBSYSTEMS = (
    (r"\d+-[\d.]+(:\d+\.\d+)?|usb\d+", "usb"),
    (r"host\d+|target[\d:]+|\d+:\d+:\d+:\d+", "scsi"),
    (r"virtio\d+", "virtio"),
    (r"nvme\d+", "nvme"),
    (r"nvme-subsys\d+", "nvme-subsystem"),
    (r"mmc\d+:[0-9a-f]{4}", "mmc"),
    (r"mmc\d+", "mmc_host"),
    (r"adapter\d+", "pseudo"),
    (r"0000:[0-9a-f:.]+", "pci"),
    (r"\w+\.mmc|floppy\.0|rtsx_\w+\.2\.auto", "platform"),
)
"""Name of a directory to what its link "subsystem" leads to, on the same machine."""


@dataclass
class DeviceTree:
    """A machine that is put together; everything it shows lies under ``root``."""

    root: Path
    properties: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """What udev would know, by the name of the device."""
    _mounts: list[str] = field(default_factory=list)
    _swaps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("sys/class/block", "sys/block", "sys/dev/block", "proc/self", "dev", "run"):
            (self.root / name).mkdir(parents=True)
        self._write_lists()

    @property
    def kernel(self) -> Kernel:
        return Kernel(*(self.root / name for name in ("sys", "proc", "dev", "run")))

    def add_disk(
        self,
        path: str,
        number: str,
        *,
        sectors: int = 32 * GIB_SECTORS,
        attributes: Mapping[str, str] | None = None,
    ) -> Path:
        """Add a disk at ``path`` below /sys/devices; attributes are relative to the disk."""
        directory = self._add_block_device(path, number, sectors)
        parent = directory.parent
        self._add_subsystems(parent)
        if parent.name == "block":
            parent = parent.parent
        if "virtual/block" not in path:
            (directory / "device").symlink_to(parent)
        (self.root / "sys/block" / directory.name).symlink_to(directory)
        given = {"removable": "0", "ro": "0", "queue/logical_block_size": "512"}
        for name, value in (given | dict(attributes or {})).items():
            self._write(directory / name, value)
        return directory

    def add_virtual(
        self, name: str, number: str, *, attributes: Mapping[str, str] | None = None
    ) -> Path:
        return self.add_disk(f"virtual/block/{name}", number, attributes=attributes)

    def add_partition(self, disk: Path, index: int, number: str) -> Path:
        separator = "p" if disk.name[-1].isdigit() else ""
        path = disk.relative_to(self.root.resolve() / "sys/devices")
        name = f"{disk.name}{separator}{index}"
        directory = self._add_block_device(f"{path}/{name}", number, GIB_SECTORS)
        self._write(directory / "partition", str(index))
        return directory

    def stack(self, upper: Path, *lowers: Path) -> None:
        """Let ``upper`` stand on the others, as device-mapper and md do."""
        for lower in lowers:
            (upper / "slaves" / lower.name).symlink_to(lower)
            (lower / "holders" / upper.name).symlink_to(upper)

    def mount(
        self,
        number: str,
        point: str,
        source: str = "none",
        *,
        filesystem: str = "ext4",
        options: str = "rw",
    ) -> None:
        identity = 20 + len(self._mounts)
        self._mounts.append(
            f"{identity} 1 {number} / {point} rw,relatime shared:{identity} - "
            f"{filesystem} {source} {options}\n"
        )
        self._write_lists()

    def swap_on(self, path: str, kind: str = "partition") -> None:
        self._swaps.append(f"{path:40}{kind}\t8388604\t0\t-2\n")
        self._write_lists()

    def mount_btrfs(self, point: str, source: str, members: Sequence[Path]) -> None:
        identity = f"6a2e0c7e-0000-4000-8000-{len(self._mounts):012}"
        devices = self.root / "sys/fs/btrfs" / identity / "devices"
        devices.mkdir(parents=True)
        for member in members:
            (devices / member.name).symlink_to(member)
        self.mount("0:25", point, source, filesystem="btrfs")

    def disks(self) -> dict[str, Disk]:
        """What is listed on this machine, by name."""
        return {disk.node.name: disk for disk in list_disks(self.kernel, RecordedUdev(self))}

    def _add_block_device(self, path: str, number: str, sectors: int) -> Path:
        directory = self.root.resolve() / "sys/devices" / path
        for name in ("holders", "slaves"):
            (directory / name).mkdir(parents=True)
        self._write(directory / "size", str(sectors))
        (directory / "subsystem").symlink_to(self.root / "sys/class/block")
        (self.root / "sys/class/block" / directory.name).symlink_to(directory)
        if number:
            self._write(directory / "dev", number)
            (self.root / "sys/dev/block" / number).symlink_to(directory)
            (self.root / "dev" / directory.name).touch()
        return directory

    def _add_subsystems(self, directory: Path) -> None:
        while directory.name != "devices":
            for pattern, subsystem in _SUBSYSTEMS:
                link = directory / "subsystem"
                if re.fullmatch(pattern, directory.name) and not link.is_symlink():
                    link.symlink_to(self.root / "sys/bus" / subsystem)
            directory = directory.parent

    def _write_lists(self) -> None:
        proc = self.root / "proc"
        (proc / "self/mountinfo").write_text("".join(self._mounts), encoding="ascii")
        heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        (proc / "swaps").write_text(heading + "".join(self._swaps), encoding="ascii")

    @staticmethod
    def _write(path: Path, value: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(value) + b"\n")


@dataclass(frozen=True)
class RecordedUdev:
    """The udev database of a `DeviceTree`."""

    tree: DeviceTree

    def list_disks(self) -> list[Path]:
        directories = [link.resolve() for link in (self.tree.root / "sys/class/block").iterdir()]
        return [path for path in directories if not (path / "partition").exists()]

    def read(self, directory: Path) -> UdevRecord:
        return UdevRecord(self.tree.properties.get(directory.name, {}))
