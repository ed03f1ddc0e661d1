"""Machines as labs have them: what hangs where, what is mounted, and what may be written.

The paths are those of kernel 6.1 on such hardware. A machine is looked at as it is built here, and,
written out by `recording`, through libudev by umockdev.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import devicetree
from devicetree import GIB_SECTORS, DeviceTree

Verdicts = Mapping[str, frozenset[str]]
"""Name of a disk to the codes of its refusals; none: it is offered."""

FREE: frozenset[str] = frozenset()
INTERNAL = frozenset({"target-internal"})
VIRTUAL = frozenset({"target-virtual"})
SYSTEM_CARD = frozenset({"target-system-disk", "target-mounted"})
SYSTEM = frozenset({"target-system-disk", "target-mounted", "target-internal"})


@dataclass(frozen=True)
class Machine:
    """A machine, and what is to be said of its disks."""

    build: Callable[[DeviceTree], None]
    verdicts: Verdicts


def _usb(bus: int, port: str, host: int, name: str, lun: int = 0) -> str:
    """The path of a disk of usb-storage in ``port`` of ``bus``, such as ``2.1``."""
    hubs = "/".join(f"{bus}-{port[: 2 * depth + 1]}" for depth in range(port.count(".") + 1))
    return (
        f"pci0000:00/0000:00:14.0/usb{bus}/{hubs}/{bus}-{port}:1.0/host{host}/"
        f"target{host}:0:0/{host}:0:0:{lun}/block/{name}"
    )


def _add_stick(
    tree: DeviceTree, path: str, number: str, serial: str | None = None, gib: int = 32
) -> Path:
    disk = tree.add_disk(
        path,
        number,
        sectors=gib * GIB_SECTORS,
        attributes={"removable": "1", "device/vendor": "SanDisk ", "device/model": "Ultra"},
    )
    if serial is not None:
        port = next(each for each in disk.parents if ":1.0" in each.name).parent
        (port / "serial").write_text(f"{serial}\n")
    return disk


def _laptop(tree: DeviceTree) -> None:
    """NVMe with a Windows beside it; an SD card and a stick for the boards."""
    disk = tree.add_disk(devicetree.NVME, "259:0", sectors=476 * GIB_SECTORS)
    for index, point in ((1, "/boot/efi"), (2, "/"), (3, None)):
        tree.add_partition(disk, index, f"259:{index}")
        if point is not None:
            tree.mount(f"259:{index}", point, f"/dev/nvme0n1p{index}")
    tree.add_disk(
        "pci0000:00/0000:00:1c.0/0000:02:00.0/rtsx_pci_sdmmc.0/mmc_host/mmc0/mmc0:aaaa/"
        "block/mmcblk0",
        "179:0",
        attributes={"device/type": "SD", "device/name": "SC32G", "device/serial": "0x1b2c3d4e"},
    )
    _add_stick(tree, _usb(1, "3", 4, "sda"), "8:0", "4C530001")


def _desktop_with_lvm_on_raid(tree: DeviceTree) -> None:
    """Two disks, a mirror of them, a volume group on it; a data disk that nothing uses."""
    raid = tree.add_virtual("md0", "9:0", attributes={"md/level": "raid1"})
    for path, number in ((devicetree.SATA, 0), (devicetree.SATA_2, 16)):
        disk = tree.add_disk(path, f"8:{number}", sectors=1863 * GIB_SECTORS)
        tree.stack(raid, tree.add_partition(disk, 1, f"8:{number + 1}"))
    volume = tree.add_virtual(
        "dm-0", "253:0", attributes={"dm/name": "vg-root", "dm/uuid": "LVM-aB3"}
    )
    tree.stack(volume, raid)
    tree.mount("253:0", "/", "/dev/mapper/vg-root")
    tree.add_disk(
        "pci0000:00/0000:00:1f.2/ata3/host4/target4:0:0/4:0:0:0/block/sdc",
        "8:32",
        sectors=200 * GIB_SECTORS,
    )


def _luks_root(tree: DeviceTree) -> None:
    """An encrypted root; of a stick the second partition is unlocked, too."""
    disk = tree.add_disk(devicetree.NVME, "259:0", sectors=238 * GIB_SECTORS)
    tree.mount("259:1", "/boot", "/dev/nvme0n1p1")
    tree.add_partition(disk, 1, "259:1")
    root = tree.add_virtual(
        "dm-0", "253:0", attributes={"dm/name": "cryptroot", "dm/uuid": "CRYPT-LUKS2-1-cryptroot"}
    )
    tree.stack(root, tree.add_partition(disk, 2, "259:2"))
    tree.mount("253:0", "/", "/dev/mapper/cryptroot")
    stick = _add_stick(tree, _usb(2, "1", 2, "sda"), "8:0", "KEYS")
    tree.add_partition(stick, 1, "8:1")
    secret = tree.add_virtual(
        "dm-1", "253:1", attributes={"dm/name": "secret", "dm/uuid": "CRYPT-LUKS2-2-secret"}
    )
    tree.stack(secret, tree.add_partition(stick, 2, "8:2"))


def _raspberry_pi(tree: DeviceTree) -> None:
    """It runs from its own card, and writes sticks."""
    card = tree.add_disk(
        "platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0",
        "179:0",
        sectors=30 * GIB_SECTORS,
        attributes={"device/type": "SD", "device/name": "SL32G"},
    )
    for index, point in ((1, "/boot/firmware"), (2, "/")):
        tree.add_partition(card, index, f"179:{index}")
        tree.mount(f"179:{index}", point, f"/dev/mmcblk0p{index}")
    _add_stick(tree, _usb(1, "1.2", 0, "sda"), "8:0", "E0D55E")


def _server(tree: DeviceTree) -> None:
    """Two paths to a LUN behind multipath, a system on SAS, a virtual stick of its console."""
    paths = []
    for host, name, number in ((7, "sdb", 16), (8, "sdc", 32)):
        path = (
            f"pci0000:3a/0000:3a:00.0/0000:3b:00.{host - 7}/host{host}/rport-{host}:0-0/"
            f"target{host}:0:0/{host}:0:0:1/block/{name}"
        )
        paths.append(tree.add_disk(path, f"8:{number}", sectors=100 * GIB_SECTORS))
    lun = tree.add_virtual(
        "dm-0", "253:0", attributes={"dm/name": "mpatha", "dm/uuid": "mpath-3600508b4"}
    )
    tree.stack(lun, *paths)
    tree.mount("253:0", "/srv", "/dev/mapper/mpatha", filesystem="xfs")
    system = tree.add_disk(devicetree.SAS, "8:96", sectors=278 * GIB_SECTORS)
    tree.add_partition(system, 1, "8:97")
    tree.mount("8:97", "/", "/dev/sdg1")
    _add_stick(tree, _usb(1, "1", 11, "sdh"), "8:112", None, gib=0)


def _bench_with_a_hub(tree: DeviceTree) -> None:
    """Eight sticks in a hub; two with the same serial number, one without, one mounted."""
    disk = tree.add_disk(devicetree.NVME, "259:0")
    tree.mount("259:1", "/", "/dev/nvme0n1p1")
    tree.add_partition(disk, 1, "259:1")
    serials = ["A1", "A2", "SAME", "SAME", None, "A6", "A7", "A8"]
    for index, serial in enumerate(serials):
        name = f"sd{chr(ord('a') + index)}"
        path = _usb(1, f"2.{index + 1}", index, name)
        stick = _add_stick(tree, path, f"8:{16 * index}", serial)
        if index == 7:
            tree.add_partition(stick, 1, f"8:{16 * index + 1}")
            tree.mount(f"8:{16 * index + 1}", "/media/lab/STICK", f"/dev/{name}1")


def _reader_of_four_slots(tree: DeviceTree) -> None:
    """One USB device, four disks; a card in the second slot, and one locked in the third."""
    disk = tree.add_disk(devicetree.SATA, "8:0")
    tree.mount("8:1", "/", "/dev/sda1")
    tree.add_partition(disk, 1, "8:1")
    for lun, (gib, locked) in enumerate(((0, "0"), (16, "0"), (16, "1"), (0, "0"))):
        name = f"sd{chr(ord('b') + lun)}"
        tree.add_disk(
            _usb(3, "4", 6, name, lun),
            f"8:{16 * (lun + 1)}",
            sectors=gib * GIB_SECTORS,
            attributes={"removable": "1", "ro": locked},
        )


def _nvme_enclosure(tree: DeviceTree) -> None:
    """An NVMe in a USB enclosure says that it is not removable; larger than a card, too."""
    disk = tree.add_disk(devicetree.VIRTIO, "254:0")
    tree.mount("254:0", "/", "/dev/vda")
    assert disk.name == "vda"
    for name, port, number, gib in (("sda", "1", 0, 119), ("sdb", "2", 16, 931)):
        tree.add_disk(
            _usb(2, port, 1 + number, name),
            f"8:{number}",
            sectors=gib * GIB_SECTORS,
            attributes={"removable": "0", "device/model": "RTL9210B-CG"},
        )


def _board_with_emmc(tree: DeviceTree) -> None:
    """It runs from a card; its eMMC, with two boot areas, is what is to be written."""
    emmc = tree.add_disk(devicetree.EMMC, "179:8", attributes={"device/type": "MMC"})
    for index in range(2):
        area = f"{devicetree.EMMC}/mmcblk1boot{index}"
        tree.add_disk(area, f"179:{16 + 8 * index}", sectors=8192)
    assert emmc.name == "mmcblk1"
    card = tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/type": "SD"})
    tree.add_partition(card, 2, "179:2")
    tree.mount("179:2", "/", "/dev/mmcblk0p2")


def _laptop_with_btrfs(tree: DeviceTree) -> None:
    """Root on btrfs over two disks, swap in memory and on a stick, and a loop device."""
    members = []
    for path, number in ((devicetree.SATA, "8:0"), (devicetree.SATA_2, "8:16")):
        members.append(tree.add_disk(path, number))
    tree.mount_btrfs("/", "/dev/sda", members)
    tree.add_virtual("zram0", "252:0")
    tree.swap_on("/dev/zram0")
    tree.add_disk(_usb(1, "1", 3, "sdd"), "8:48")
    tree.swap_on("/dev/sdd")
    tree.add_virtual("loop0", "7:0", attributes={"loop/backing_file": "/home/lab/disk.img"})
    tree.add_virtual("loop1", "7:1", attributes={"loop/backing_file": "/dev/sde"})
    _add_stick(tree, _usb(1, "2", 4, "sde"), "8:64", "LOOPED")


def _virtual_machine(tree: DeviceTree) -> None:
    """virtio disks, one of 4096-byte sectors, and a stick passed through."""
    disk = tree.add_disk(devicetree.VIRTIO, "254:0", attributes={"serial": "vm-root"})
    tree.add_partition(disk, 1, "254:1")
    tree.mount("254:1", "/", "/dev/vda1")
    tree.add_disk(
        "pci0000:00/0000:00:09.0/virtio6/block/vdb",
        "254:16",
        attributes={"queue/logical_block_size": "4096"},
    )
    _add_stick(tree, _usb(1, "1", 2, "sda"), "8:0", "PASSED")


def _host_of_virtual_machines(tree: DeviceTree) -> None:
    """Volumes for virtual machines, as Proxmox and libvirt make them; one card."""
    disk = tree.add_disk(devicetree.NVME, "259:0", sectors=200 * GIB_SECTORS)
    group = tree.add_partition(disk, 3, "259:3")
    for name, number, volume in (
        ("dm-0", "253:0", "pve-root"),
        ("dm-5", "253:5", "pve-vm--100--disk--0"),
    ):
        facts = {"dm/name": volume, "dm/uuid": f"LVM-{number}"}
        tree.stack(tree.add_virtual(name, number, attributes=facts), group)
    tree.mount("253:0", "/", "/dev/mapper/pve-root")
    array = tree.add_virtual("md1", "9:1", attributes={"md/level": "raid1"})
    for path, number in ((devicetree.SATA, "8:0"), (devicetree.SATA_2, "8:16")):
        tree.stack(array, tree.add_disk(path, number))
    for name, number in (("zd0", "230:0"), ("nbd0", "43:0"), ("rbd0", "251:0")):
        tree.add_virtual(name, number)
    _add_stick(tree, _usb(1, "2", 4, "sdc"), "8:32", "CARD")


def _add_live_stick(tree: DeviceTree, image: str) -> None:
    stick = _add_stick(tree, _usb(1, "1", 3, "sda"), "8:0", "LIVE")
    tree.add_partition(stick, 1, "8:1")
    tree.add_virtual("loop0", "7:0", attributes={"loop/backing_file": image})
    _add_stick(tree, _usb(1, "2", 4, "sdb"), "8:16", "OTHER")


def _mount_overlay(tree: DeviceTree, lower: str) -> None:
    options = f"rw,lowerdir={lower},upperdir=/cow/upper,workdir=/cow/work"
    tree.mount("0:22", "/", "overlay", filesystem="overlay", options=options)


def _live_debian(tree: DeviceTree) -> None:
    """live-boot: the layers of the root are seen."""
    _add_live_stick(tree, "/run/live/medium/live/filesystem.squashfs")
    tree.mount("8:1", "/run/live/medium", "/dev/sda1", filesystem="iso9660", options="ro")
    tree.mount("7:0", "/run/live/rootfs/filesystem.squashfs", "/dev/loop0", filesystem="squashfs")
    _mount_overlay(tree, "/run/live/rootfs/filesystem.squashfs/")


def _live_ubuntu(tree: DeviceTree) -> None:
    """casper: the layers of the root have the names that they had in the initramfs."""
    _add_live_stick(tree, "/cdrom/casper/minimal.squashfs")
    tree.mount("8:1", "/cdrom", "/dev/sda1", filesystem="iso9660", options="ro")
    tree.mount("7:0", "/rofs", "/dev/loop0", filesystem="squashfs")
    _mount_overlay(tree, "/minimal.squashfs")


def _root_on_zfs_without_udevd(tree: DeviceTree) -> None:
    """What is in the pool neither mounts nor sysfs tell."""
    for port, name, number in ((1, "sda", 0), (2, "sdb", 16)):
        stick = _add_stick(tree, _usb(1, str(port), port, name), f"8:{number}", name)
        tree.add_partition(stick, 1, f"8:{number + 1}")
    tree.mount("0:40", "/", "rpool/ROOT/debian", filesystem="zfs")
    tree.properties["sdb1"] = {"ID_FS_TYPE": "ext4"}


def _root_on_zfs(tree: DeviceTree) -> None:
    """A machine that runs from a stick in a pool, which udev knows."""
    _root_on_zfs_without_udevd(tree)
    (tree.root / "run/udev").mkdir()
    (tree.root / "run/udev/control").touch()
    tree.properties["sda1"] = {"ID_FS_TYPE": "zfs_member", "ID_FS_LABEL_ENC": "rpool"}


def _overlay_out_of_sight(tree: DeviceTree) -> None:
    """A board whose root is an overlay over a card that only the initramfs has seen mounted."""
    card = tree.add_disk(
        "platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0",
        "179:0",
        attributes={"device/type": "SD"},
    )
    tree.add_partition(card, 2, "179:2")
    # Seen on kernel 6.1: a directory for each mounted ext4, and one of all.
    for name in ("mmcblk0p2", "features"):
        (tree.root / "sys/fs/ext4" / name).mkdir(parents=True)
    _mount_overlay(tree, "/lower")
    _add_stick(tree, _usb(1, "2", 4, "sda"), "8:0", "OTHER")


def _container(tree: DeviceTree) -> None:
    """A container of Docker: its root leads nowhere, its /etc/hosts to the disk of the host."""
    disk = tree.add_disk(devicetree.SATA, "8:0")
    tree.add_partition(disk, 1, "8:1")
    _mount_overlay(tree, "/var/lib/docker/overlay2/l/A:/var/lib/docker/overlay2/l/B")
    tree.mount("8:1", "/etc/hosts", "/dev/sda1")
    (tree.root / "sys/fs/ext4/sda1").mkdir(parents=True)
    _add_stick(tree, _usb(1, "2", 4, "sdb"), "8:16", "OTHER")


UNFOUND = frozenset({"target-maybe-system"})
TOO_LARGE = frozenset({"target-too-large"})
HELD = frozenset({"target-held"})
ROOT_BELOW = frozenset({"target-system-disk", "target-held", "target-internal"})

MACHINES = {
    "laptop": Machine(_laptop, {"nvme0n1": SYSTEM | TOO_LARGE, "mmcblk0": FREE, "sda": FREE}),
    "desktop with LVM on RAID": Machine(
        _desktop_with_lvm_on_raid,
        {
            "sda": ROOT_BELOW | TOO_LARGE | {"target-mounted"},
            "sdb": ROOT_BELOW | TOO_LARGE | {"target-mounted"},
            "sdc": INTERNAL,
            "md0": SYSTEM_CARD | HELD | VIRTUAL,
            "dm-0": SYSTEM_CARD | VIRTUAL,
        },
    ),
    "LUKS root": Machine(
        _luks_root,
        {
            "nvme0n1": SYSTEM | HELD,
            "sda": HELD,
            "dm-0": SYSTEM_CARD | VIRTUAL,
            "dm-1": VIRTUAL,
        },
    ),
    "Raspberry Pi": Machine(
        _raspberry_pi,
        {"mmcblk0": SYSTEM_CARD, "sda": FREE},
    ),
    "server with multipath": Machine(
        _server,
        {
            "sdb": INTERNAL | HELD | {"target-mounted"},
            "sdc": INTERNAL | HELD | {"target-mounted"},
            "dm-0": VIRTUAL | {"target-mounted"},
            "sdg": SYSTEM | TOO_LARGE,
            "sdh": frozenset({"target-no-medium"}),
        },
    ),
    "bench with a hub": Machine(
        _bench_with_a_hub,
        {"nvme0n1": SYSTEM, **{f"sd{letter}": FREE for letter in "abcdefg"}}
        | {"sdh": frozenset({"target-mounted"})},
    ),
    "reader of four slots": Machine(
        _reader_of_four_slots,
        {
            "sda": SYSTEM,
            "sdb": frozenset({"target-no-medium"}),
            "sdc": FREE,
            "sdd": frozenset({"target-read-only"}),
            "sde": frozenset({"target-no-medium"}),
        },
    ),
    "NVMe in an enclosure": Machine(
        _nvme_enclosure, {"vda": SYSTEM, "sda": FREE, "sdb": TOO_LARGE}
    ),
    "board with eMMC": Machine(
        _board_with_emmc,
        {
            "mmcblk1": INTERNAL,
            "mmcblk0": SYSTEM_CARD,
        },
    ),
    "laptop with btrfs": Machine(
        _laptop_with_btrfs,
        {
            "sda": SYSTEM,
            "sdb": SYSTEM,
            "sdd": frozenset({"target-system-disk", "target-swap"}),
            "sde": HELD,
            "loop0": VIRTUAL,
            "loop1": VIRTUAL,
        },
    ),
    "virtual machine": Machine(
        _virtual_machine,
        {"vda": SYSTEM, "vdb": INTERNAL | {"target-sector-size"}, "sda": FREE},
    ),
    "host of virtual machines": Machine(
        _host_of_virtual_machines,
        {
            "nvme0n1": SYSTEM | HELD,
            "dm-0": SYSTEM_CARD | VIRTUAL,
            "sda": INTERNAL | HELD,
            "sdb": INTERNAL | HELD,
            "sdc": FREE,
            **dict.fromkeys(("dm-5", "md1", "nbd0", "rbd0", "zd0"), VIRTUAL),
        },
    ),
    "live system of Debian": Machine(
        _live_debian, {"sda": SYSTEM_CARD, "sdb": FREE, "loop0": SYSTEM_CARD | VIRTUAL}
    ),
    "live system of Ubuntu": Machine(
        _live_ubuntu, {"sda": SYSTEM_CARD, "sdb": FREE, "loop0": SYSTEM_CARD | VIRTUAL}
    ),
    "root on ZFS": Machine(
        _root_on_zfs, {"sda": SYSTEM - INTERNAL - {"target-mounted"}, "sdb": FREE}
    ),
    "root on ZFS without udevd": Machine(
        _root_on_zfs_without_udevd, {"sda": UNFOUND, "sdb": UNFOUND}
    ),
    "overlay out of sight": Machine(
        _overlay_out_of_sight,
        {"mmcblk0": SYSTEM - INTERNAL - {"target-mounted"}, "sda": FREE},
    ),
    "container": Machine(_container, {"sda": SYSTEM, "sdb": FREE}),
}


def recording(tree: DeviceTree) -> str:
    """The devices of ``tree`` as umockdev-record(1) would write them."""
    top = (tree.root / "sys").resolve()
    # A pattern would leave out links that lead nowhere, as those of a subsystem may here.
    directories = [
        path for path, links, names in os.walk(top / "devices") if "subsystem" in {*links, *names}
    ]
    return "\n".join(_record(tree, Path(path), top) for path in sorted(directories))


def _record(tree: DeviceTree, directory: Path, top: Path) -> str:
    subsystem = (directory / "subsystem").readlink().name
    lines = [f"P: /{directory.relative_to(top)}"]
    properties = {"SUBSYSTEM": subsystem}
    number = directory / "dev"
    if subsystem == "block" and number.exists():
        major, minor = number.read_text().strip().split(":")
        lines.append(f"N: {directory.name}")
        kind = "partition" if (directory / "partition").exists() else "disk"
        properties |= {"DEVNAME": f"/dev/{directory.name}", "DEVTYPE": kind}
        properties |= {"MAJOR": major, "MINOR": minor}
        properties |= tree.properties.get(directory.name, {})
    lines += [f"E: {name}={value}" for name, value in properties.items()]
    for path in sorted(_own_paths(directory)):
        name = path.relative_to(directory)
        if path.is_symlink():
            target = path.readlink()
            shown = Path(*[".."] * len(path.parent.relative_to(top).parts)) / target.relative_to(
                top
            )
            lines.append(f"L: {name}={shown}")
        else:
            value = path.read_text().replace("\n", "\\n")
            lines.append(f"A: {name}={value}")
    return "\n".join(lines) + "\n"


def _own_paths(directory: Path) -> Iterator[Path]:
    """Attributes and links of a device, without those of the devices below it."""
    for path in directory.iterdir():
        if path.is_symlink():
            if path.name != "subsystem":
                yield path
        elif not path.is_dir():
            yield path
        elif not (path / "subsystem").is_symlink():
            yield from _own_paths(path)
