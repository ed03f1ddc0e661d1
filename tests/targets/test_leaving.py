"""How a disk is left after it was written: what the kernel shows, and switching it off."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import devicetree
import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from devicetree import DeviceTree
from faultdev import MakeFaultDevice, bit_flip
from imagecopies import MakeImage

from balenaflash.commands.write import DiskDestination, leave
from balenaflash.errors import VerificationError, WriteError
from balenaflash.targets.after_writing import switch_off, wait_for_partitions
from balenaflash.targets.safety import assess
from balenaflash.units import MIB


@pytest.fixture
def gpt(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def tree(tmp_path: Path) -> DeviceTree:
    return DeviceTree(tmp_path / "machine")


def size_of(built: BuiltImage) -> int:
    return -(-built.path.stat().st_size // MIB) * MIB


def add_stick(tree: DeviceTree) -> Path:
    directory = tree.add_disk(devicetree.USB_STICK, "8:48")
    for index, start in ((1, 8192), (2, 100_000)):
        part = tree.add_partition(directory, index, f"8:{48 + index}")
        (part / "start").write_text(f"{start}\n")
    return directory


# What the kernel shows


def test_partitions_are_told_as_the_kernel_has_them(tree: DeviceTree) -> None:
    add_stick(tree)
    disk = tree.disks()["sdd"]
    settled = wait_for_partitions(disk, [(2, 100_000 * 512), (1, 8192 * 512)], tree.kernel)
    assert settled.is_current
    assert [(each.node.name, each.number, each.start) for each in settled.partitions] == [
        ("sdd1", 1, 8192 * 512),
        ("sdd2", 2, 100_000 * 512),
    ]


@pytest.mark.parametrize(
    "expected", [[], [(1, 8192 * 512)], [(1, 8192 * 512), (2, 8192 * 512)]], ids=len
)
def test_partitions_of_before_are_not_taken_for_the_new_ones(
    tree: DeviceTree, expected: list[tuple[int, int]]
) -> None:
    add_stick(tree)
    assert not wait_for_partitions(
        tree.disks()["sdd"], expected, tree.kernel, patience=0
    ).is_current


def test_udevd_is_given_time_to_have_the_table_read(tree: DeviceTree) -> None:
    directory = add_stick(tree)
    disk = tree.disks()["sdd"]
    (tree.kernel.run / "udev").mkdir()
    (tree.kernel.run / "udev/control").touch()
    timer = threading.Timer(0.3, (directory / "sdd1/start").write_text, ("2048\n",))
    timer.start()
    assert wait_for_partitions(disk, [(1, 2048 * 512), (2, 100_000 * 512)], tree.kernel).is_current
    timer.join()


def test_a_written_disk_is_safe_to_remove_and_a_loop_device_has_nothing_to_switch_off(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=size_of(gpt))
    run = balenaflash("write", "--yes", gpt.path, device.node)
    assert f"{device.node}: safe to remove\n" in run.stdout
    run = balenaflash("write", "--yes", "--eject", gpt.path, device.node)
    assert (run.returncode, "nothing to switch off (loop)" in run.stdout) == (0, True)
    run = balenaflash("write", "--yes", "--eject", "--json", gpt.path, device.node)
    result = json.loads(run.stdout)["result"]
    assert (result["safe_to_remove"], result["ejected"]) == (True, False)


def test_after_a_failed_read_back_nothing_is_safe_and_nothing_switched_off(
    gpt: BuiltImage, fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=size_of(gpt))
    device.set(faults=[bit_flip(gpt.boot_extent.start + 4096)])
    run = balenaflash("write", "--yes", "--eject", gpt.path, device.node)
    assert (run.returncode, run.stdout) == (6, "")
    assert "safe to remove" not in run.stderr
    assert "switch" not in run.stderr


def test_a_disk_that_failed_is_not_switched_off(tree: DeviceTree) -> None:
    remove = usb_device(add_stick(tree)) / "remove"
    remove.touch()
    destination = DiskDestination(assess(tree.disks()["sdd"], kernel=tree.kernel))
    for error in (VerificationError("differs"), WriteError("failed")):
        assert leave(destination, error, eject=True) is None
    assert remove.read_text() == ""


# Switching off


def usb_device(directory: Path) -> Path:
    return next(each for each in directory.parents if each.name == "2-1")


@contextmanager
def unplugged_when_told(directory: Path) -> Iterator[list[str]]:
    """Let the disk vanish once something was written into ``remove``, and tell what went first."""
    remove, delete = usb_device(directory) / "remove", directory / "device/delete"
    remove.touch()
    delete.touch()
    seen = list[str]()
    deadline = time.monotonic() + 10

    def unplug() -> None:
        while not remove.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.extend([delete.read_text(), remove.read_text()])
        shutil.rmtree(directory)

    thread = threading.Thread(target=unplug)
    thread.start()
    yield seen
    thread.join()


@pytest.mark.needs("root")
def test_a_usb_disk_is_switched_off_by_the_kernel(tree: DeviceTree) -> None:
    directory = add_stick(tree)
    with unplugged_when_told(directory) as seen:
        assert switch_off(tree.disks()["sdd"], tree.kernel) is None
    assert seen == ["1", "1"]


@pytest.mark.needs("root")
def test_a_disk_that_does_not_go_is_told(tree: DeviceTree) -> None:
    directory = add_stick(tree)
    (usb_device(directory) / "remove").touch()
    assert "is still there" in (switch_off(tree.disks()["sdd"], tree.kernel, patience=0) or "")


def test_a_reader_with_another_card_stays_on(tree: DeviceTree) -> None:
    directory = add_stick(tree)
    (usb_device(directory) / "remove").touch()
    other = devicetree.USB_STICK.replace("7:0:0:0/block/sdd", "7:0:0:1/block/sdi")
    second = tree.add_disk(other, "8:128")
    assert "shares its reader with sdi" in (switch_off(tree.disks()["sdd"], tree.kernel) or "")
    assert (usb_device(directory) / "remove").read_text() == ""
    (second / "size").write_text("0\n")  # a slot without a card
    assert "shares" not in (switch_off(tree.disks()["sdd"], tree.kernel, patience=0) or "")


@pytest.mark.parametrize("path", [devicetree.SD_READER, devicetree.SATA])
def test_what_is_not_on_usb_has_nothing_to_switch_off(tree: DeviceTree, path: str) -> None:
    directory = tree.add_disk(path, "8:0")
    assert "nothing to switch off" in (switch_off(tree.disks()[directory.name], tree.kernel) or "")


@pytest.mark.parametrize("has_udisks", [True, False])
def test_an_ordinary_user_asks_udisks(
    has_udisks: bool,  # noqa: FBT001 - pytest calls it so
    tree: DeviceTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_stick(tree)
    disk = tree.disks()["sdd"]
    if has_udisks:
        script = tmp_path / "udisksctl"
        script.write_text('#!/bin/sh\necho "Error: $*" >&2\nexit 1\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    said = switch_off(disk, tree.kernel) or ""
    asked = f"Error: power-off --no-user-interaction --block-device {disk.node}"
    assert (asked in said) is has_udisks
    assert ("udisks2, which could do it, is not installed" in said) is not has_udisks
