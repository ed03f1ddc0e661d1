"""What is shown before the question: which disk, what is lost, what will be done, how long."""

import subprocess
from dataclasses import replace
from pathlib import Path

import devicetree
import pytest
from builders import Layout
from commandline import RunBalenaflash
from devicetree import DeviceTree
from faultdev import MakeFaultDevice
from imagecopies import MakeImage
from loopdev import AttachLoop
from test_cli_terminal import at_terminal, size_of

from balenaflash.cli.write import destination_lines
from balenaflash.commands.disk_report import find_content
from balenaflash.commands.write import DiskDestination
from balenaflash.flashing.plan import WritePlan
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.source.layers import Patch
from balenaflash.targets.disks import find_disk
from balenaflash.targets.safety import assess
from balenaflash.units import MIB, Extent

TABLE = PartitionTable(TableKind.GPT, 512, "0x0", (), ())
PLAN = WritePlan(300 * MIB, TABLE, free=(Extent(200 * MIB, 300 * MIB),))


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    """A stick of 32 GiB with two partitions, one of them mounted."""
    tree = DeviceTree(tmp_path / "machine")
    disk = tree.add_disk(
        devicetree.USB_STICK, "8:48", attributes={"device/model": "Ultra", "device/vendor": "Acme"}
    )
    stick = next(each for each in disk.parents if each.name == "2-1")
    (stick / "serial").write_text("4C5300\n")
    (stick / "speed").write_text("480\n")
    for index in (1, 2):
        tree.add_partition(disk, index, f"8:{48 + index}")
    tree.properties["sdd1"] = {"ID_FS_TYPE": "vfat", "ID_FS_LABEL_ENC": r"PHO\x1bTOS"}
    tree.mount("8:49", r"/media/my\040photos", "/dev/sdd1")
    return tree


def shown(tree: DeviceTree, plan: WritePlan = PLAN, *, move: tuple[Patch, ...] = ()) -> str:
    assessment = assess(tree.disks()["sdd"], kernel=tree.kernel)
    destination = DiskDestination(assessment, move)
    return "\n".join(destination_lines(destination, plan, reads_back=True))


def test_the_screen_tells_all_that_is_lost_and_where_the_disk_is(tree: DeviceTree) -> None:
    text = shown(tree)
    for fact in (
        "usb, 32.0 GiB (34359738368 bytes)",
        "Acme Ultra, serial 4C5300",
        "USB port 2-1",
        "sdd1: vfat PHO?TOS, 1.0 GiB",
        "sdd2: unknown content, 1.0 GiB",
        "sdd1 is mounted at /media/my photos",
        "unmount what is mounted",
        "write 200.0 MiB, leave 100.0 MiB of free space",
    ):
        assert fact in text
    assert "\x1b" not in text
    assert len(text.splitlines()) < 24, "one screen"
    assert "move the backup GPT" not in text
    assert "move the backup GPT" in shown(tree, move=(Patch(0, b"x"),))


def test_the_time_is_what_the_port_takes_at_least_or_unknown(tree: DeviceTree) -> None:
    # 480 Mbit/s move 60 MB/s at most: written and read back, 2 * 200 MiB take 7 s.
    assert "Time:    at least 7.0 s, by the speed of USB port 2-1" in shown(tree)
    large = replace(PLAN, image_size=5000 * MIB)
    assert "at least 2 min 51 s" in shown(tree, large)
    assert "Time:    unknown" in shown(tree, replace(PLAN, free=None))
    stick = next(each for each in tree.disks()["sdd"].sys_path.parents if each.name == "2-1")
    (stick / "speed").write_text("unknown\n")
    assert "Time:    unknown" in shown(tree)


def test_it_is_shown_before_the_question_on_one_screen(
    image: MakeImage, fault_device: MakeFaultDevice
) -> None:
    gpt = image(Layout.GPT_FAT16)
    device = fault_device(size=size_of(gpt))
    status, text = at_terminal(["write", gpt.path, device.node], answer="n\n")
    assert status == 4, text
    question = text.index("Erase all of")
    places = [text.index(head) for head in ("Image:", "Target:", "Lost:", "Plan:", "Time:")]
    assert sorted([*places, question]) == [*places, question]
    assert text[:question].count("\n") < 24


def test_without_udev_the_disk_itself_tells_what_is_on_it(
    image: MakeImage, attach_loop: AttachLoop, tmp_path: Path
) -> None:
    gpt = image(Layout.GPT_FAT16)
    content = find_content(replace(find_disk(attach_loop(gpt.path)), partitions=()))
    assert [(each.size, each.filesystem) for each in content] == [
        (each.extent.size, each.filesystem) for each in gpt.partitions
    ]
    assert [each.label for each in content] == [each.label for each in gpt.partitions]
    plain = tmp_path / "plain"
    plain.write_bytes(bytes(8 * MIB))
    assert find_content(find_disk(attach_loop(plain))) == ()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "photos", plain], check=True)
    (whole,) = find_content(find_disk(attach_loop(plain)))
    assert (whole.size, whole.filesystem, whole.label) == (8 * MIB, "ext4", "photos")


def test_without_terminal_the_option_that_answers_is_named(
    image: MakeImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    gpt = image(Layout.GPT_FAT16)
    device = fault_device(size=size_of(gpt))
    run = balenaflash("write", "--json", gpt.path, device.node)
    assert run.returncode == 4
    assert '"lifted_by": "--yes"' in run.stdout
    assert device.stats().bytes_written == 0
