"""What ``inspect`` tells of filesystems, of their fill, and of the version in one of them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from boot_tree import OS_VERSION
from boot_volume import edited
from builders import BuiltImage, ExpectedPartition, Layout, run
from commandline import RunBalenaflash
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.units import KIB


def result_of(balenaflash: RunBalenaflash, image: Path) -> dict[str, Any]:
    done = balenaflash("inspect", "--json", image)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


def cut_out(image: Path, partition: ExpectedPartition, folder: Path) -> Path:
    """A partition as a file of its own."""
    path = folder / "partition"
    start, size = partition.extent.start // KIB, -(-partition.extent.size // KIB)
    run("dd", f"if={image}", f"of={path}", "bs=1024", f"skip={start}", f"count={size}")
    return path


def dumpe2fs(path: Path) -> tuple[int, int]:
    """Bytes of a filesystem, and those that are free."""
    told = dict(line.split(":", 1) for line in run("dumpe2fs", "-h", path).splitlines() if line)
    size = int(told["Block size"])
    return int(told["Block count"]) * size, int(told["Free blocks"]) * size


def fsck_vfat(path: Path) -> tuple[int, int]:
    """Bytes of all clusters, and of those that are free."""
    told = run("fsck.vfat", "-v", "-n", path)
    size = re.search(r"(\d+) bytes per cluster", told)
    used = re.search(r"files, (\d+)/(\d+) clusters", told)
    assert size is not None
    assert used is not None
    total = int(used[2]) * int(size[1])
    return total, total - int(used[1]) * int(size[1])


@pytest.mark.needs("util-linux")
@pytest.mark.parametrize(
    ("layout", "flasher"), [*((layout, False) for layout in Layout), (Layout.MSDOS_FAT16, True)]
)
def test_filesystems_are_those_of_blkid_and_as_full_as_their_own_tools_say(
    layout: Layout,
    *,
    flasher: bool,
    image: MakeImage,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(layout, flasher=flasher)
    for item, expected in zip(
        result_of(balenaflash, built.path)["partitions"], built.partitions, strict=True
    ):
        assert item["filesystem_read"] is True
        if expected.filesystem is None:
            assert item["filesystem"] is None
            continue
        alone = cut_out(built.path, expected, tmp_path)
        blkid = dict(
            line.split("=", 1) for line in run("blkid", "-p", "-o", "export", alone).splitlines()
        )
        total, free = (fsck_vfat if expected.filesystem == "vfat" else dumpe2fs)(alone)
        assert item["filesystem"] == {
            "type": blkid["TYPE"],
            "label": blkid["LABEL"],
            "uuid": blkid["UUID"],
            "total": total,
            "free": free,
            "used": total - free,
        }


def partition_called(built: BuiltImage, label: str) -> ExpectedPartition:
    return next(each for each in built.partitions if each.label == label)


def debugfs(built: BuiltImage, label: str, *commands: str) -> None:
    """Change an ext4 filesystem in its place."""
    offset = partition_called(built, label).extent.start
    for command in commands:
        run("debugfs", "-w", "-R", command, f"{built.path}?offset={offset}")


@pytest.mark.parametrize("layout", [Layout.GPT_FAT16, Layout.MSDOS_FAT16])
def test_a_journal_that_holds_changes_is_warned_of(
    layout: Layout, image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(layout)
    assert balenaflash("inspect", built.path).stderr == ""
    debugfs(built, "resin-data", "feature needs_recovery")
    start = partition_called(built, "resin-data").extent.start
    told = balenaflash("inspect", built.path).stderr
    assert f"the ext4 filesystem at byte {start}: its journal holds changes" in told


def test_a_damaged_superblock_leaves_the_fill_unknown(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16)
    state = partition_called(built, "resin-state")
    with built.path.open("r+b") as file:
        file.seek(state.extent.start + 1024 + 4)  # s_blocks_count_lo
        file.write(b"\xff\xff\xff\x7f")
    done = balenaflash("inspect", built.path)
    assert done.returncode == 0, done.stderr
    assert f"the ext4 filesystem at byte {state.extent.start}" in done.stderr
    item = result_of(balenaflash, built.path)["partitions"][state.number - 1]
    assert item["filesystem"]["label"] == "resin-state"
    assert (item["filesystem"]["used"], item["filesystem"]["free"]) == (None, None)


@pytest.mark.parametrize("is_link", [False, True])
def test_the_version_is_told_by_the_root_filesystem_if_the_boot_partition_does_not(
    is_link: bool,  # noqa: FBT001 - a parameter of the test
    image: MakeImage,
    balenaflash: RunBalenaflash,
    tmp_path: Path,
) -> None:
    built = image(Layout.MSDOS_FAT16)
    told = result_of(balenaflash, built.path)["balena"]
    boot = {"partition": built.boot_number, "path": "/os-release"}
    assert (told["os_version"], told["os_version_from"]) == (OS_VERSION, boot)
    with edited(built) as volume:
        volume.remove_file("/os-release")
    version = OS_VERSION
    if is_link:
        version = "99.1.2"
        (tmp_path / "release").write_text(f'ID="balena-os"\nVERSION="{version}"\n')
        debugfs(
            built,
            "resin-rootA",
            "rm /etc/os-release",
            f"write {tmp_path}/release /usr/lib/os-release",
            "symlink /etc/os-release ../usr/lib/os-release",
        )
    told = result_of(balenaflash, built.path)["balena"]
    root = {"partition": 2, "path": "/etc/os-release"}
    assert (told["os_version"], told["os_version_from"]) == (version, root)
    assert f"OS version: {version}\n" in balenaflash("inspect", built.path).stdout


def test_a_root_filesystem_that_cannot_be_read_leaves_the_version_unknown(
    image: MakeImage, balenaflash: RunBalenaflash
) -> None:
    built = image(Layout.GPT_FAT16)
    with edited(built) as volume:
        volume.remove_file("/os-release")
    debugfs(built, "resin-rootA", "rm /etc/os-release", "write /dev/null /etc/os-release")
    assert result_of(balenaflash, built.path)["balena"]["os_version"] is None
    assert "OS version: unknown\n" in balenaflash("inspect", built.path).stdout
    start = partition_called(built, "resin-rootA").extent.start
    with built.path.open("r+b") as file:
        file.seek(start + 1024)  # all of the superblock but its magic, label and UUID
        file.write(bytes(56))
    done = balenaflash("inspect", built.path)
    assert done.returncode == 0, done.stderr
    assert "The version of the OS is not known: " in done.stderr


def test_a_card_is_shown_as_full_as_it_is(
    image: MakeImage, attach_loop: AttachLoop, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    """A filesystem that is in use, with what was written to it."""
    built = image(Layout.GPT_FAT16)
    state = partition_called(built, "resin-state")
    node = attach_loop(built.path)
    mounted = attach_loop(built.path, offset=state.extent.start)
    point = tmp_path / "state"
    point.mkdir()
    run("mount", mounted, point)
    try:
        (point / "filler").write_bytes(b"x" * 5_000_000)
    finally:
        run("umount", point)
    subprocess.run(["blockdev", "--flushbufs", node], check=True)
    _total, free = dumpe2fs(cut_out(built.path, state, tmp_path))
    item = result_of(balenaflash, node)["partitions"][state.number - 1]
    assert item["filesystem"]["free"] == free
