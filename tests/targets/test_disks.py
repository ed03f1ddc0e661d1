"""Which disks are found, what is said of them, and what is refused as a target."""

import dataclasses
import json
import subprocess
from pathlib import Path

import devicetree
import pytest
import pyudev
from devicetree import DeviceTree, RecordedUdev
from loopdev import AttachLoop

from balenaflash.errors import TargetRefusedError, ToolMissingError
from balenaflash.targets.disks import Disk, find_disk, list_disks
from balenaflash.targets.safety import assess
from balenaflash.targets.sysfs import Bus, Kernel
from balenaflash.targets.udev import PyudevDatabase, UdevRecord

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    return DeviceTree(tmp_path / "machine")


@pytest.mark.parametrize(
    ("path", "attributes", "bus", "external"),
    [
        (devicetree.USB_STICK, {"removable": "1"}, Bus.USB, True),
        (devicetree.USB_BEHIND_HUB, {"removable": "0"}, Bus.USB, True),
        (devicetree.SD_READER, {"device/type": "SD"}, Bus.SD, True),
        (devicetree.SD_READER, {"device/type": "SDcombo"}, Bus.SD, True),
        (devicetree.EMMC, {"device/type": "MMC"}, Bus.MMC, False),
        (devicetree.USB_MMC_READER, {"device/type": "SD"}, Bus.SD, True),
        (devicetree.USB_MMC_READER, {"device/type": "MMC"}, Bus.MMC, True),
        (devicetree.NVME, {}, Bus.NVME, False),
        (devicetree.NVME_MULTIPATH, {}, Bus.NVME, False),
        (devicetree.SATA, {"device/type": "0"}, Bus.ATA, False),
        (devicetree.SAS, {"device/type": "0"}, Bus.SCSI, False),
        (devicetree.VIRTIO, {}, Bus.VIRTIO, False),
        (devicetree.VIRTIO_SCSI, {}, Bus.VIRTIO, False),
        (devicetree.FLOPPY, {"removable": "1"}, Bus.UNKNOWN, True),
        (devicetree.SCSI_DEBUG, {}, Bus.VIRTUAL, False),
        ("virtual/block/loop0", {}, Bus.LOOP, False),
        ("virtual/block/dm-0", {}, Bus.VIRTUAL, False),
    ],
)
def test_the_nearest_ancestor_tells_the_bus_and_removable_alone_tells_nothing(
    tree: DeviceTree, path: str, attributes: dict[str, str], bus: Bus, *, external: bool
) -> None:
    tree.add_disk(path, "8:0", attributes=attributes)
    (disk,) = tree.disks().values()
    assert disk.bus is bus
    assert disk.is_external is external
    assert disk.is_virtual is (bus in {Bus.LOOP, Bus.VIRTUAL})


def test_the_usb_port_is_that_of_the_device_and_not_of_its_hub(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.USB_BEHIND_HUB, "8:64")
    tree.add_disk(devicetree.USB_STICK, "8:48")
    tree.add_disk(devicetree.NVME, "259:0")
    ports = {name: disk.usb_port for name, disk in tree.disks().items()}
    assert ports == {"sde": "1-2.3", "sdd": "2-1", "nvme0n1": None}


def test_only_disks_that_somebody_could_mean_are_listed(tree: DeviceTree) -> None:
    tree.add_disk(devicetree.OPTICAL, "11:0", attributes={"device/type": "5", "removable": "1"})
    tree.add_disk(devicetree.EMMC, "179:0", attributes={"device/type": "MMC"})
    tree.add_disk(f"{devicetree.EMMC}/mmcblk1boot0", "179:8", sectors=8192)
    tree.add_disk(devicetree.NVME_HIDDEN_PATH, "", attributes={"hidden": "1"})
    tree.add_disk(devicetree.USB_STICK, "8:48", sectors=0, attributes={"removable": "1"})
    for name, number in (("ram0", "1:0"), ("zram0", "251:0"), ("loop1", "7:1")):
        tree.add_virtual(name, number)
    tree.add_disk("virtual/block/loop0", "7:0", sectors=0)
    # Kept: the eMMC, the USB reader without a card, and the loop device that has a file.
    assert list(tree.disks()) == ["sdd", "mmcblk1", "loop1"]
    assert tree.disks()["sdd"].size == 0


def test_size_counts_in_512_bytes_whatever_the_sectors_are(tree: DeviceTree) -> None:
    attributes = {"queue/logical_block_size": "4096", "queue/physical_block_size": "16384"}
    tree.add_disk(devicetree.NVME, "259:0", sectors=8, attributes=attributes)
    disk = tree.disks()["nvme0n1"]
    assert (disk.size, disk.logical_sector_size, disk.physical_sector_size) == (4096, 4096, 16384)


def test_without_udevd_a_disk_still_tells_its_name_and_serial_number(tree: DeviceTree) -> None:
    scsi = {"device/vendor": "SanDisk ", "device/model": "Ultra           ", "device/type": "0"}
    stick = tree.add_disk(devicetree.USB_STICK, "8:48", attributes={**scsi, "removable": "1"})
    (stick.parents[5] / "serial").write_text("4C530001\n")
    sata = {"device/vendor": "ATA     ", "device/model": "Samsung SSD 860 ", "device/type": "0"}
    disk = tree.add_disk(devicetree.SATA, "8:0", attributes=sata)
    # VPD page 80h as `sg_vpd --raw --page=sn` gives it: header of 4 bytes, then the number.
    (disk / "device/vpd_pg80").write_bytes(b"\x00\x80\x00\x08 S3Z9NB0")
    (disk / "device/wwid").write_text("naa.5002538e40a1b2c3\n")
    tree.add_disk(
        devicetree.VIRTIO, "254:0", attributes={"serial": "VIRT", "device/vendor": "0x1af4"}
    )
    card = {"device/type": "SD", "device/name": "SC32G", "device/serial": "0xdeadbeef"}
    tree.add_disk(devicetree.SD_READER, "179:0", attributes=card)
    facts = {
        name: (disk.vendor, disk.model, disk.serial, disk.wwn)
        for name, disk in tree.disks().items()
    }
    assert facts == {
        "sdd": ("SanDisk", "Ultra", "4C530001", None),
        "sda": (None, "Samsung SSD 860", "S3Z9NB0", "0x5002538e40a1b2c3"),
        "vda": (None, None, "VIRT", None),
        "mmcblk0": (None, "SC32G", "0xdeadbeef", None),
    }


def test_udev_names_a_disk_and_sysfs_decides_on_its_serial_number(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.USB_STICK, "8:48")
    (disk.parents[5] / "serial").write_text("ENCLOSURE1\n")
    tree.add_partition(disk, 1, "8:49")
    # As udev 252 has them: `udevadm info /dev/sdd`.
    tree.properties["sdd"] = {
        "ID_VENDOR_ENC": r"Western\x20Digital",
        "ID_MODEL_ENC": r"QEMU\x20HARDDISK\x20\x20\x20",
        "ID_SERIAL_SHORT": "WD-123",
        "ID_WWN": "0x50014ee2b5f0c8a1",
    }
    tree.properties["sdd1"] = {"ID_FS_LABEL_ENC": r"Größe\x20\x2fx", "ID_FS_TYPE": "vfat"}
    found = tree.disks()["sdd"]
    assert (found.vendor, found.model) == ("Western Digital", "QEMU HARDDISK")
    assert (found.serial, found.wwn) == ("ENCLOSURE1", "0x50014ee2b5f0c8a1")
    (partition,) = found.partitions
    assert (partition.label, partition.filesystem) == ("Größe /x", "vfat")
    assert (partition.number, partition.size) == (1, 1 << 30)
    assert partition.node.name == "sdd1"


def test_escape_sequences_in_what_a_disk_calls_itself_never_reach_the_terminal(
    tree: DeviceTree,
) -> None:
    disk = tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"device/model": "\x1b[2JX"})
    (disk.parents[5] / "serial").write_bytes(b"12\x1b]0;\xff34\n")
    found = tree.disks()["sdd"]
    assert (found.model, found.serial) == ("?[2JX", "12?]0;?34")


def test_a_partition_that_vanishes_while_it_is_listed_does_no_harm(tree: DeviceTree) -> None:
    disk = tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/type": "SD"})
    (disk / "mmcblk0p1").mkdir()  # what is left for a moment: a directory without attributes
    assert tree.disks()["mmcblk0"].partitions == ()


def _lsblk(*arguments: str | Path) -> list[dict[str, object]]:
    columns = "NAME,MAJ:MIN,SIZE,LOG-SEC,PHY-SEC,RO,RM,ROTA,TYPE"
    command = ["lsblk", "--json", "--bytes", "--nodeps", "--output", columns, *arguments]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    devices: list[dict[str, object]] = answer["blockdevices"]
    return devices


@pytest.mark.needs("util-linux")
def test_every_disk_that_lsblk_lists_is_found_with_the_same_facts(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    nodes = []
    for name, read_only, sector_size in (("a", False, 512), ("b", True, 512), ("c", False, 4096)):
        (tmp_path / name).write_bytes(bytes(MIB))
        path = tmp_path / name
        nodes.append(attach_loop(path, read_only=read_only, sector_size=sector_size))
    found = {
        disk.node.name: {
            "name": disk.node.name,
            "maj:min": str(disk.device_number),
            "size": disk.size,
            "log-sec": disk.logical_sector_size,
            "phy-sec": disk.physical_sector_size,
            "ro": disk.read_only,
            "rm": disk.removable,
            "rota": disk.rotational,
        }
        for disk in list_disks()
    }
    # All but memory (1, zram), optical drives (11) and the loop devices of other programs (7).
    devices = [*_lsblk("--exclude", "1,7,11"), *_lsblk(*nodes)]
    for device in devices:
        if device.pop("type") in {"disk", "loop"} and "zram" not in str(device["name"]):
            assert found[str(device["name"])] == device
    assert len(devices) >= len(nodes)


def test_a_disk_is_found_by_its_node_and_by_a_link_to_it(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(3 * MIB))
    node = attach_loop(backing)
    link = tmp_path / "by-id"
    link.symlink_to(node)
    disk = find_disk(node)
    assert find_disk(str(link)) == disk
    assert (disk.node, disk.size, disk.backing_file) == (node, 3 * MIB, backing)


def _make_node(path: Path, disk: Disk) -> None:
    subprocess.run(["mknod", path, "b", *map(str, disk.device_number)], check=True)


@pytest.mark.needs("root")
def test_a_node_under_another_name_is_that_of_its_number(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    # As docker run --device /dev/sdb:/dev/target makes it.
    there, other = (tmp_path / "there.img", tmp_path / "other.img")
    for path in (there, other):
        path.write_bytes(bytes(MIB))
    disk, wrong = find_disk(attach_loop(there)), find_disk(attach_loop(other))
    dev = tmp_path / "dev"
    dev.mkdir()
    _make_node(dev / "target", disk)
    kernel = Kernel(dev=dev)
    assert find_disk(dev / "target", kernel) == dataclasses.replace(disk, node=dev / "target")
    # Nor does a node of its usual name mislead that is another disk's.
    _make_node(dev / disk.node.name, wrong)
    found = {each.device_number: each.node for each in list_disks(kernel)}
    assert found[disk.device_number] == dev / "target"
    assert find_disk(dev / disk.node.name, kernel).device_number == wrong.device_number
    (dev / "target").unlink()
    (lost,) = [each for each in list_disks(kernel) if each.device_number == disk.device_number]
    assert "target-missing" in {problem.code for problem in assess(lost).problems}


@pytest.mark.needs("util-linux")
def test_a_partition_is_refused_and_its_disk_is_named(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(4 * MIB))
    table = b"label: dos\n2048,2048,c\n"
    subprocess.run(["sfdisk", "--quiet", backing], input=table, check=True)
    node = attach_loop(backing)
    subprocess.run(["partx", "--add", node], check=True)
    try:
        partition = Path(f"{node}p1")
        with pytest.raises(TargetRefusedError) as caught:
            find_disk(partition)
        assert [problem.code for problem in caught.value.problems] == ["target-is-partition"]
        assert str(node) in (caught.value.problems[0].hint or "")
        (found,) = find_disk(node).partitions
        assert (found.node, found.number, found.size) == (partition, 1, MIB)
    finally:
        subprocess.run(["partx", "--delete", node], check=True)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/dev/null", "target-not-block-device"),
        ("/etc", "target-not-block-device"),
        ("/etc/passwd", "target-not-block-device"),
        ("/dev/disk/by-id/none", "target-missing"),
        ("/etc/passwd/sda", "target-missing"),
    ],
)
def test_what_is_no_disk_is_refused_in_one_sentence(target: str, code: str) -> None:
    with pytest.raises(TargetRefusedError) as caught:
        find_disk(target)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert target in problem.message
    assert "\n" not in problem.message


def test_an_optical_drive_is_refused_by_name(
    tree: DeviceTree, tmp_path: Path, attach_loop: AttachLoop
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    node = attach_loop(tmp_path / "disk.img")
    # The node is real, and the machine where its number is that of an optical drive is not.
    number = str(find_disk(node).device_number)
    tree.add_disk(devicetree.OPTICAL, number, attributes={"device/type": "5", "removable": "1"})
    with pytest.raises(TargetRefusedError) as caught:
        find_disk(node, tree.kernel, RecordedUdev(tree))
    assert caught.value.problems[0].code == "target-optical"


def test_a_disk_that_udev_has_forgotten_is_not_an_error(
    tree: DeviceTree,
) -> None:
    # Directories of another machine: libudev, asked for them, finds nothing.
    tree.add_disk(devicetree.USB_STICK, "8:48", attributes={"device/model": "Ultra"})

    class Forgetful(RecordedUdev):
        def read(self, directory: Path) -> UdevRecord:
            return PyudevDatabase().read(directory)

    (disk,) = list_disks(tree.kernel, Forgetful(tree))
    assert (disk.model, disk.links) == ("Ultra", ())


def test_a_missing_libudev_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr(pyudev, "Context", load)
    with pytest.raises(ToolMissingError, match="libudev"):
        list_disks()


@pytest.mark.needs("root")
def test_a_node_whose_device_is_gone_is_missing(tmp_path: Path) -> None:
    node = tmp_path / "sdz"
    subprocess.run(["mknod", node, "b", "8", "4095"], check=True)
    with pytest.raises(TargetRefusedError) as caught:
        find_disk(node)
    assert caught.value.problems[0].code == "target-missing"


@pytest.mark.parametrize(
    ("text", "bits"),
    [("1.5", 1_500_000), ("480", 480_000_000), ("20000", 20_000_000_000), ("unknown", None)],
)
def test_the_speed_of_a_usb_port_is_what_the_kernel_set_it_to(
    tree: DeviceTree, text: str, bits: int | None
) -> None:
    stick = tree.add_disk(devicetree.USB_STICK, "8:0")
    usb_device = next(each for each in stick.parents if each.name == "2-1")
    (usb_device / "speed").write_text(f"{text}\n")
    tree.add_disk(devicetree.NVME, "259:0")
    speeds = {disk.node.name: disk.usb_speed for disk in tree.disks().values()}
    assert speeds == {"sdd": bits, "nvme0n1": None}


def test_a_card_says_what_it_is(tree: DeviceTree) -> None:
    cid = "035344534c3332478067f0c2f7014a00"
    tree.add_disk(devicetree.SD_READER, "179:0", attributes={"device/cid": cid})
    tree.add_disk(devicetree.USB_STICK, "8:0")
    assert {disk.node.name: disk.mmc_cid for disk in tree.disks().values()} == {
        "mmcblk0": cid,
        "sdd": None,
    }
