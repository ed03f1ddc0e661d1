"""What a disk is in use for, and what the running system stands on."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import devicetree
import pytest
from devicetree import DeviceTree
from hypothesis import given
from hypothesis import strategies as st
from loopdev import AttachLoop

from balenaflash.errors import TargetRefusedError
from balenaflash.targets.disks import find_disk
from balenaflash.targets.sysfs import Kernel
from balenaflash.targets.usage import (
    Mount,
    Swap,
    Usage,
    Use,
    UseKind,
    disks_under,
    find_mount,
    is_backed_by,
    parse_mountinfo,
    parse_swaps,
    system_disks,
)

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    return DeviceTree(tmp_path / "machine")


def uses_of(tree: DeviceTree, name: str) -> list[tuple[str, str, str]]:
    uses = Usage(tree.kernel).of(tree.disks()[name])
    return [(use.kind.value, use.device, use.detail) for use in uses]


def system_of(tree: DeviceTree) -> dict[str, set[str]]:
    names = {disk.device_number: name for name, disk in tree.disks().items()}
    found = system_disks(tree.kernel)
    return {names[number]: set(reasons) for number, reasons in found.items() if number in names}


# Formats


def _mangle(text: str) -> str:
    # As seq_escape(m, s, " \t\n\\#") in fs/proc_namespace.c of kernel 6.1.
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)


paths = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30
).map(lambda text: "/" + text)


@given(point=paths, source=paths, optional=st.lists(st.sampled_from(["shared:1", "master:2"])))
def test_any_mount_is_read_as_the_kernel_meant_it(
    point: str, source: str, optional: list[str]
) -> None:
    fields = ["36", "35", "98:0", "/", _mangle(point), "rw,noatime", *optional, "-"]
    line = " ".join([*fields, "ext3", _mangle(source), "rw,errors=continue"])
    (mount,) = parse_mountinfo(f"{line}\n".encode())
    assert mount == Mount(36, (98, 0), point, "ext3", source, ("rw", "errors=continue"))  # type: ignore[arg-type]  # a plain tuple equals a DeviceNumber


def test_a_mount_without_a_source_and_bytes_that_are_no_utf8_are_read() -> None:
    (mount,) = parse_mountinfo(b"36 35 0:40 / /mnt/\xff rw -  tmpfs  rw\n".replace(b" -  ", b" - "))
    assert (mount.source, mount.mount_point) == ("", "/mnt/\udcff")


@given(path=paths)
def test_any_swap_area_is_read_as_the_kernel_meant_it(path: str) -> None:
    # As seq_file_path(swap, file, " \t\n\\") in mm/swapfile.c pads and escapes it.
    mangled = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)
    heading = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    line = f"{mangled:40}file\t\t1048572\t\t0\t\t-2\n"
    assert parse_swaps((heading + line).encode()) == (Swap(path, is_file=True),)


def test_the_mount_that_a_path_lies_in_is_the_deepest_and_of_equals_the_last() -> None:
    lines = b"""\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 / /home rw - ext4 /dev/sda2 rw
22 20 8:3 / /home rw - ext4 /dev/sda3 rw
23 20 8:4 / /home/me rw - ext4 /dev/sda4 rw
"""
    mounts = parse_mountinfo(lines)
    for path, minor in (("/etc/x", 1), ("/home/you", 3), ("/home/me/x", 4), ("/home/me2", 3)):
        mount = find_mount(mounts, path)
        assert mount is not None
        assert mount.number.minor == minor


# Other machines


def test_a_laptop_on_lvm_on_luks_and_its_free_readers(tree: DeviceTree) -> None:
    nvme = tree.add_disk(devicetree.NVME, "259:0")
    efi, boot, luks = (tree.add_partition(nvme, index, f"259:{index}") for index in (1, 2, 3))
    crypt = tree.add_virtual(
        "dm-0", "253:0", attributes={"dm/name": "luks-1", "dm/uuid": "CRYPT-LUKS2-0f-luks-1"}
    )
    root = tree.add_virtual(
        "dm-1", "253:1", attributes={"dm/name": "vg-root", "dm/uuid": "LVM-abc"}
    )
    swap = tree.add_virtual(
        "dm-2", "253:2", attributes={"dm/name": "vg-swap", "dm/uuid": "LVM-abd"}
    )
    tree.stack(crypt, luks)
    tree.stack(root, crypt)
    tree.stack(swap, crypt)
    tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/type": "SD"})
    tree.mount("253:1", "/", "/dev/mapper/vg-root")
    tree.mount("259:2", "/boot", "/dev/nvme0n1p2")
    tree.mount("259:1", "/boot/efi", "/dev/nvme0n1p1", filesystem="vfat")
    tree.swap_on("/dev/dm-2")
    assert (efi.name, boot.name) == ("nvme0n1p1", "nvme0n1p2")
    assert system_of(tree) == {
        "nvme0n1": {"/", "/boot", "/boot/efi", "swap"},
        "dm-0": {"/", "swap"},
        "dm-1": {"/"},
        "dm-2": {"swap"},
    }
    assert uses_of(tree, "nvme0n1") == [
        ("mount", "nvme0n1p1", "/boot/efi"),
        ("mount", "nvme0n1p2", "/boot"),
        ("crypt", "nvme0n1p3", "luks-1"),
        ("lvm", "dm-0", "vg-root"),
        ("mount", "dm-1", "/"),
        ("lvm", "dm-0", "vg-swap"),
        ("swap", "dm-2", "/dev/dm-2"),
    ]
    assert uses_of(tree, "mmcblk0") == []


def test_a_raspberry_pi_stands_on_its_card(tree: DeviceTree) -> None:
    card = tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/type": "SD"})
    tree.add_partition(card, 1, "179:1")
    tree.add_partition(card, 2, "179:2")
    tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"removable": "1"})
    tree.mount("179:2", "/", "/dev/root")
    tree.mount("179:1", "/boot/firmware", "/dev/mmcblk0p1", filesystem="vfat")
    assert system_of(tree) == {"mmcblk0": {"/", "/boot/firmware"}}


def test_the_boot_area_of_the_system_emmc_belongs_to_the_system(tree: DeviceTree) -> None:
    emmc = tree.add_disk(devicetree.EMMC, "179:0", attributes={"device/type": "MMC"})
    tree.add_partition(emmc, 2, "179:2")
    tree.add_disk(f"{devicetree.EMMC}/mmcblk1boot0", "179:8", sectors=8192)
    tree.mount("179:2", "/", "/dev/root")
    assert set(map(str, system_disks(tree.kernel))) == {"179:0", "179:8"}


def test_both_halves_of_a_mirror_hold_the_system(tree: DeviceTree) -> None:
    first = tree.add_disk(devicetree.SATA, "8:0")
    second = tree.add_disk(devicetree.SATA_2, "8:16")
    array = tree.add_virtual("md0", "9:0", attributes={"md/level": "raid1"})
    tree.stack(array, tree.add_partition(first, 1, "8:1"), tree.add_partition(second, 1, "8:17"))
    tree.add_disk(devicetree.USB_STICK, "8:48")
    tree.mount("9:0", "/", "/dev/md0")
    assert system_of(tree) == {"md0": {"/"}, "sda": {"/"}, "sdb": {"/"}}
    assert uses_of(tree, "sdb") == [("raid", "sdb1", "/dev/md0"), ("mount", "md0", "/")]
    assert uses_of(tree, "sdd") == []


@pytest.mark.parametrize("source", ["/dev/sda2", "/dev/root"])
def test_every_member_of_a_btrfs_holds_what_is_on_it(tree: DeviceTree, source: str) -> None:
    first = tree.add_partition(tree.add_disk(devicetree.SATA, "8:0"), 2, "8:2")
    second = tree.add_disk(devicetree.SATA_2, "8:16")
    tree.mount_btrfs("/", source, [first, second])
    assert system_of(tree) == {"sda": {"/"}, "sdb": {"/"}}
    assert uses_of(tree, "sda") == [("mount", "sda2", "/")]
    assert uses_of(tree, "sdb") == [("mount", "sdb", "/")]


def test_a_second_btrfs_is_not_taken_for_the_first(tree: DeviceTree) -> None:
    system = tree.add_disk(devicetree.SATA, "8:0")
    data = tree.add_disk(devicetree.SATA_2, "8:16")
    tree.mount_btrfs("/", "/dev/sda", [system])
    tree.mount_btrfs("/mnt", "/dev/sdb", [data])
    assert system_of(tree) == {"sda": {"/"}}
    assert uses_of(tree, "sdb") == [("mount", "sdb", "/mnt")]


def test_a_live_system_stands_on_the_stick_it_was_started_from(tree: DeviceTree) -> None:
    stick = tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"removable": "1"})
    tree.add_partition(stick, 1, "8:49")
    image = "/run/live/medium/live/filesystem.squashfs"
    tree.add_virtual("loop0", "7:0", attributes={"loop/backing_file": image})
    tree.add_disk(devicetree.NVME, "259:0")
    tree.mount(
        "0:30",
        "/",
        "overlay",
        filesystem="overlay",
        options="rw,lowerdir=/run/live/rootfs,upperdir=/run/live/overlay/rw,workdir=/run/live/overlay/w",
    )
    tree.mount("8:49", "/run/live/medium", "/dev/sdd1", filesystem="iso9660")
    tree.mount("7:0", "/run/live/rootfs", "/dev/loop0", filesystem="squashfs")
    tree.mount("0:31", "/run/live/overlay", "tmpfs", filesystem="tmpfs")
    assert system_of(tree) == {"sdd": {"/", "/run/live/medium"}, "loop0": {"/"}}


def test_in_a_container_the_overlay_of_the_root_leads_to_itself_and_ends(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.NVME, "259:0")
    tree.add_partition(disk, 2, "259:2")
    options = "rw,lowerdir=/var/lib/docker/l/A:/var/lib/docker/l/B,upperdir=/var/lib/docker/u"
    tree.mount("0:50", "/", "overlay", filesystem="overlay", options=options)
    tree.mount("259:2", "/etc/hosts", "/dev/nvme0n1p2")
    assert system_of(tree) == {"nvme0n1": {"/etc/hosts"}}
    assert uses_of(tree, "nvme0n1") == [("mount", "nvme0n1p2", "/etc/hosts")]


def test_a_swap_file_makes_its_disk_a_disk_of_the_system(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.SATA, "8:0")
    tree.mount("8:0", "/mnt/data", "/dev/sda")
    tree.swap_on(r"/mnt/data/swapfile\040(deleted)", "file")
    assert system_of(tree) == {"sda": {"swap"}}
    assert uses_of(tree, "sda") == [("mount", "sda", "/mnt/data")]


def test_a_loop_device_over_a_partition_and_what_is_on_it_are_found(tree: DeviceTree) -> None:
    stick = tree.add_disk(devicetree.USB_STICK, "8:48")
    tree.add_partition(stick, 1, "8:49")
    backing = {"loop/backing_file": "/dev/sdd1 (deleted)"}
    loop = tree.add_virtual("loop3", "7:3", attributes=backing)
    tree.add_partition(loop, 1, "259:9")
    tree.mount("259:9", "/mnt", "/dev/loop3p1")
    assert uses_of(tree, "sdd") == [("loop", "sdd1", "/dev/loop3"), ("mount", "loop3p1", "/mnt")]


def test_other_holders_are_told_by_their_node(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.SATA, "8:0")
    cache = tree.add_virtual("bcache0", "252:0")
    multipath = {"dm/name": "mpatha", "dm/uuid": "mpath-3600508"}
    tree.stack(cache, disk)
    tree.stack(tree.add_virtual("dm-7", "253:7", attributes=multipath), disk)
    assert uses_of(tree, "sda") == [
        ("holder", "sda", "/dev/bcache0"),
        ("device-mapper", "sda", "mpatha"),
    ]


def test_devices_that_stand_on_each_other_in_a_circle_end_the_search(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.SATA, "8:0")
    upper = tree.add_virtual("dm-0", "253:0", attributes={"dm/name": "upper"})
    tree.stack(upper, disk)
    tree.stack(disk, upper)
    tree.mount("253:0", "/", "/dev/mapper/upper")
    assert system_of(tree) == {"sda": {"/"}, "dm-0": {"/"}}
    assert len(uses_of(tree, "sda")) == 3


def test_a_disk_that_was_unplugged_has_no_uses_left(tree: DeviceTree) -> None:
    directory = tree.add_disk(devicetree.USB_STICK, "8:48")
    disk = tree.disks()["sdd"]
    subprocess.run(["rm", "-r", directory], check=True)
    assert Usage(tree.kernel).of(disk) == ()


def test_without_the_kernels_lists_no_disk_counts_as_unused(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.USB_STICK, "8:48")
    disk = tree.disks()["sdd"]
    blind = Kernel(tree.kernel.sys, tree.root / "none", tree.kernel.dev, tree.kernel.run)
    with pytest.raises(TargetRefusedError) as caught:
        Usage(blind).of(disk)
    assert caught.value.problems[0].code == "usage-unknown"


# This machine


@contextmanager
def mounted(node: Path, point: Path) -> Iterator[None]:
    point.mkdir()
    subprocess.run(["mount", node, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.fixture
def disk_image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.mark.needs("e2fsprogs", "util-linux")
def test_a_mount_is_found_by_its_odd_mount_point(
    tmp_path: Path, disk_image: Path, attach_loop: AttachLoop
) -> None:
    subprocess.run(["mkfs.ext4", "-q", disk_image], check=True)
    node = attach_loop(disk_image)
    point = tmp_path / "a b\\c#\td"
    assert Usage().of(find_disk(node)) == ()
    with mounted(node, point):
        assert Usage().of(find_disk(node)) == (Use(UseKind.MOUNT, node.name, str(point)),)
        assert find_disk(node).device_number in disks_under(point / "image")
    assert Usage().of(find_disk(node)) == ()


@pytest.mark.needs("root", "util-linux")
def test_swap_is_found_and_makes_a_disk_of_the_system(
    disk_image: Path, attach_loop: AttachLoop
) -> None:
    node = attach_loop(disk_image)
    subprocess.run(["mkswap", node], check=True, capture_output=True)
    subprocess.run(["swapon", node], check=True)
    try:
        disk = find_disk(node)
        assert Usage().of(disk) == (Use(UseKind.SWAP, node.name, str(node)),)
        assert "swap" in system_disks()[disk.device_number]
    finally:
        subprocess.run(["swapoff", node], check=True)
    assert find_disk(node).device_number not in system_disks()


def test_a_loop_device_over_a_loop_device_is_a_use(
    disk_image: Path, attach_loop: AttachLoop
) -> None:
    lower = attach_loop(disk_image)
    upper = attach_loop(lower)
    assert Usage().of(find_disk(lower)) == (Use(UseKind.LOOP, lower.name, str(upper)),)
    assert Usage().of(find_disk(upper)) == ()
    assert find_disk(lower).device_number in disks_under(upper)


def test_a_loop_device_over_a_node_in_a_chroot_is_a_use(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.USB_STICK, "8:48")
    tree.add_virtual("loop0", "7:0", attributes={"loop/backing_file": "/srv/chroot/dev/sdd"})
    assert uses_of(tree, "sdd") == []  # just a file of that name
    tree.mount("0:6", "/srv/chroot/dev", "udev", filesystem="devtmpfs")
    assert uses_of(tree, "sdd") == [("loop", "sdd", "/dev/loop0")]


def test_a_file_is_recognised_through_the_loop_devices_over_it(
    tmp_path: Path, disk_image: Path, attach_loop: AttachLoop
) -> None:
    upper = attach_loop(attach_loop(disk_image))
    other = tmp_path / "other.img"
    other.touch()
    assert is_backed_by(find_disk(upper), disk_image)
    assert not is_backed_by(find_disk(upper), other)


@pytest.mark.needs("util-linux")
def test_the_disk_below_the_root_is_the_one_that_lsblk_and_findmnt_name() -> None:
    def ask(*command: str | Path) -> list[str]:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    number = ask("findmnt", "--noheadings", "--output", "MAJ:MIN", "--mountpoint", "/")[0]
    if number.startswith("0:"):
        pytest.skip("the root of this machine is on no block device of its own")
    name = Path("/sys/dev/block", number).resolve().name
    columns = ("--list", "--noheadings", "--output", "MAJ:MIN,TYPE")
    below = ask("lsblk", "--inverse", *columns, Path("/dev", name))
    disks = {below[i] for i in range(0, len(below), 2) if below[i + 1] == "disk"}
    assert disks <= {str(found) for found, reasons in system_disks().items() if "/" in reasons}
