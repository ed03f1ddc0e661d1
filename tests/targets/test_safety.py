"""Each reason not to write a disk, and what lifts it."""

import dataclasses
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import devicetree
import pytest
from devicetree import DeviceTree
from loopdev import AttachLoop, read_direct

from balenaflash.errors import TargetRefusedError
from balenaflash.targets.disks import find_disk
from balenaflash.targets.safety import Assessment, Permissions, assess, require_writable

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    return DeviceTree(tmp_path / "machine")


NAMED = Permissions(virtual=True)
"""A loop device is written when it was named by its node."""


def codes(assessment: Assessment) -> list[str]:
    return [problem.code for problem in assessment.problems]


def judge(tree: DeviceTree, name: str, *, allow_internal: bool = False) -> Assessment:
    permissions = Permissions(internal=allow_internal)
    return assess(tree.disks()[name], permissions=permissions, kernel=tree.kernel)


# Other machines


def test_of_a_whole_workbench_just_the_cards_and_sticks_may_be_written(tree: DeviceTree) -> None:
    nvme = tree.add_disk(devicetree.NVME, "259:0")
    tree.mount("259:2", "/", "/dev/nvme0n1p2")
    tree.add_partition(nvme, 2, "259:2")
    tree.add_disk(devicetree.SATA, "8:0")
    tree.add_disk(devicetree.SATA_2, "8:16", attributes={"queue/logical_block_size": "4096"})
    tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"removable": "1"})
    tree.add_disk(devicetree.USB_BEHIND_HUB, "8:64", sectors=0, attributes={"removable": "1"})
    tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/type": "SD"})
    tree.add_disk(devicetree.EMMC, "179:8", attributes={"device/type": "MMC", "ro": "1"})
    tree.add_disk(devicetree.SCSI_DEBUG, "8:112")
    tree.add_virtual("loop0", "7:0")
    assert {name: codes(judge(tree, name)) for name in tree.disks()} == {
        "nvme0n1": ["target-system-disk", "target-mounted", "target-internal"],
        "sda": ["target-internal"],
        "sdb": ["target-internal", "target-sector-size"],
        "sdd": [],
        "sde": ["target-no-medium"],
        "mmcblk0": [],
        "mmcblk1": ["target-internal", "target-read-only"],
        "sdh": ["target-virtual"],
        "loop0": ["target-virtual"],
    }


def test_allowing_internal_disks_lifts_that_refusal_and_no_other(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.SATA, "8:0")
    tree.add_disk(devicetree.NVME, "259:0")
    tree.mount("259:0", "/", "/dev/nvme0n1")
    assert judge(tree, "sda", allow_internal=True).is_writable
    assert codes(judge(tree, "nvme0n1", allow_internal=True)) == [
        "target-system-disk",
        "target-mounted",
    ]


def test_a_virtual_device_is_written_when_its_node_was_named_or_the_flag_given(
    tree: DeviceTree,
) -> None:
    tree.add_virtual("dm-5", "253:5", attributes={"dm/name": "pve-vm--100--disk--0"})
    (problem,) = judge(tree, "dm-5").problems
    assert (problem.code, problem.lifted_by) == ("target-virtual", "--allow-internal")
    assert judge(tree, "dm-5", allow_internal=True).is_writable
    assert assess(tree.disks()["dm-5"], permissions=NAMED, kernel=tree.kernel).is_writable


def test_the_message_about_the_system_names_all_that_is_on_it_and_offers_no_way(
    tree: DeviceTree,
) -> None:
    disk = tree.add_disk(devicetree.NVME, "259:0")
    tree.add_partition(disk, 1, "259:1")
    tree.add_partition(disk, 2, "259:2")
    tree.mount("259:2", "/", "/dev/nvme0n1p2")
    tree.mount("259:1", "/boot/efi", "/dev/nvme0n1p1")
    system, mounted, _internal = judge(tree, "nvme0n1").problems
    assert "holds the running system (/, /boot/efi)" in system.message
    assert mounted.hint is None


def test_what_stands_on_a_disk_is_released_from_the_top(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"removable": "1"})
    crypt = {"dm/name": "luks-1", "dm/uuid": "CRYPT-LUKS2-0f-luks-1"}
    lower = tree.add_virtual("dm-0", "253:0", attributes=crypt)
    upper = tree.add_virtual("dm-1", "253:1", attributes={"dm/name": "vg-x", "dm/uuid": "LVM-1"})
    tree.stack(lower, tree.add_partition(disk, 1, "8:49"))
    tree.stack(upper, lower)
    tree.mount("253:1", r"/media/my\040data", "/dev/mapper/vg-x")
    tree.mount("253:1", r"/media/my\040data/sub", "/dev/mapper/vg-x")
    mounted, held = judge(tree, "sdd").problems
    assert (
        mounted.hint
        == "Add --unmount, or unmount it first: umount '/media/my data/sub' '/media/my data'"
    )
    assert held.hint == "Release it first: dmsetup remove vg-x; cryptsetup close luks-1"
    assert "sdd1 by crypt luks-1" in held.message


def test_an_unknown_holder_gets_no_made_up_command(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.USB_STICK, "8:48")
    tree.stack(tree.add_virtual("bcache0", "252:0"), disk)
    (held,) = judge(tree, "sdd").problems
    assert held.hint == f"See what they are: lsblk {tree.disks()['sdd'].node}"


def test_sizes_are_compared_to_the_byte_and_told_in_bytes(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.USB_STICK, "8:48", sectors=2048)
    disk = tree.disks()["sdd"]
    assert assess(disk, image_size=MIB, kernel=tree.kernel).is_writable
    (problem,) = assess(disk, image_size=MIB + 1, kernel=tree.kernel).problems
    assert problem.code == "target-too-small"
    assert "1048576 bytes" in problem.message
    assert "1048577" in problem.message
    assert assess(disk, permissions=Permissions(max_size=MIB), kernel=tree.kernel).is_writable
    assert codes(assess(disk, permissions=Permissions(max_size=MIB - 1), kernel=tree.kernel)) == [
        "target-too-large"
    ]


def test_a_disk_that_vanished_is_missing(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.USB_STICK, "8:48")
    disk = tree.disks()["sdd"]
    disk.node.unlink()
    assert codes(assess(disk, kernel=tree.kernel)) == ["target-missing"]


# This machine


def digest(node: Path, *, length: int = 8 * MIB) -> str:
    """The first bytes of a device, read past the page cache."""
    content, error = read_direct(node, length)
    assert error is None
    return hashlib.sha256(content).hexdigest()


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _mount(node: Path, _attach: AttachLoop, cleanup: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    # Read-only and without its journal: so nothing but us could change a byte.
    options = "ro,noload"
    run("mount", "-o", options, node, tmp_path / "point")
    cleanup.callback(run, "umount", "--lazy", tmp_path / "point")


def _swap(node: Path, _attach: AttachLoop, cleanup: ExitStack, _tmp_path: Path) -> None:
    run("mkswap", node)
    run("swapon", node)
    cleanup.callback(run, "swapoff", node)


def _loop(node: Path, attach: AttachLoop, _cleanup: ExitStack, _tmp_path: Path) -> None:
    attach(node)


Use = Callable[[Path, AttachLoop, ExitStack, Path], None]


@pytest.mark.needs("root", "e2fsprogs", "util-linux")
@pytest.mark.parametrize(
    ("use", "expected", "way"),
    [
        (_mount, ["target-mounted"], "umount "),
        (_swap, ["target-system-disk", "target-swap"], "swapoff "),
        (_loop, ["target-held"], "losetup --detach "),
    ],
)
def test_a_disk_in_use_is_refused_and_not_a_byte_changes(
    use: Use,
    expected: list[str],
    way: str,
    tmp_path: Path,
    attach_loop: AttachLoop,
    cleanup: ExitStack,
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(8 * MIB))
    run("mkfs.ext4", "-q", backing)
    node = attach_loop(backing)
    use(node, attach_loop, cleanup, tmp_path)
    # The kernel may page out to a swap area at any time, but never to its first page.
    length = 4096 if use is _swap else 8 * MIB
    before = digest(node, length=length)
    assessment = assess(find_disk(node), permissions=NAMED)
    assert codes(assessment) == expected
    assert way in (assessment.problems[-1].hint or "")
    with pytest.raises(TargetRefusedError) as caught:
        require_writable(assessment)
    assert caught.value.problems == assessment.problems
    assert digest(node, length=length) == before


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, attach_loop: AttachLoop) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    node = attach_loop(backing, read_only=True, sector_size=4096)
    before = digest(node)
    attach_loop(node, read_only=True)
    assessment = assess(
        find_disk(node),
        image_size=2 * MIB,
        image_path=backing,
        permissions=Permissions(max_size=4096, virtual=True),
    )
    assert codes(assessment) == [
        "target-holds-image",
        "target-held",
        "target-read-only",
        "target-too-small",
        "target-too-large",
        "target-sector-size",
    ]
    assert digest(node) == before


@pytest.mark.needs("root", "e2fsprogs", "util-linux")
def test_the_disk_that_the_image_lies_on_is_refused(
    tmp_path: Path, attach_loop: AttachLoop, cleanup: ExitStack
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(8 * MIB))
    run("mkfs.ext4", "-q", backing)
    node = attach_loop(backing)
    (tmp_path / "point").mkdir()
    run("mount", node, tmp_path / "point")
    cleanup.callback(run, "umount", "--lazy", tmp_path / "point")
    image = tmp_path / "point/balena.img"
    image.touch()
    (tmp_path / "link.img").symlink_to(image)
    for path in (image, tmp_path / "link.img"):
        assessment = assess(find_disk(node), image_path=path, permissions=NAMED)
        assert codes(assessment) == ["target-holds-image", "target-mounted"]


def test_an_image_that_is_the_target_itself_is_refused(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    node = attach_loop(backing)
    for image in (node, backing):
        assert codes(assess(find_disk(node), image_path=image, permissions=NAMED)) == [
            "target-holds-image"
        ]


@pytest.mark.needs("root")
def test_an_ordinary_user_is_told_which_group_would_help(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(MIB))
    disk = find_disk(attach_loop(backing))
    with tempfile.TemporaryDirectory() as directory:
        node = Path(directory, "node")
        run("mknod", "-m", "0660", node, "b", *map(str, disk.device_number))
        os.chown(node, 0, 6)  # "disk" on Debian and most others
        Path(directory).chmod(0o755)
        there = dataclasses.replace(disk, node=node)
        assert assess(there, permissions=NAMED).is_writable
        os.seteuid(65534)
        try:
            (problem,) = assess(there, permissions=NAMED).problems
        finally:
            os.seteuid(0)
    assert problem.code == "target-no-permission"
    assert "brw-rw----" in problem.message
    for way in ("root", "group", "udev rule"):
        assert way in (problem.hint or "")
