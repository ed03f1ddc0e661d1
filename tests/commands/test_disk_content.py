"""What is said to be on a disk where udevd does not run: as blkid says it."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import superblocks
from loopdev import AttachLoop

from balenaflash.commands.disk_report import find_content
from balenaflash.targets.disks import find_disk
from balenaflash.units import KIB, MIB

LABELS_READ = {"xfs", "btrfs", "f2fs", "iso", "jfs", "reiserfs"}
"""Of NTFS, exFAT and UDF the label has no fixed place."""


BLKID_2_38 = {
    "btrfs": ("btrfs", "LABELBTR"),
    "md 1.0": ("linux_raid_member", None),
    "md 1.1": ("linux_raid_member", None),
    "md 1.2": ("linux_raid_member", None),
    "zfs": ("zfs_member", None),
}
"""What ``blkid -p`` of util-linux 2.38 says of these superblocks, which are not whole. That of
util-linux 2.41 (Debian 13) checks their checksums and names nothing."""


def blkid(path: Path) -> tuple[str, str | None] | None:
    run = subprocess.run(
        ["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=False
    )
    facts = dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)
    return (facts["TYPE"], facts.get("LABEL")) if "TYPE" in facts else None


def put(path: Path, *pieces: tuple[int, bytes], size: int = 4 * MIB) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)


def _raid(version: int, offset: int) -> Callable[[Path], None]:
    """A superblock of md, hand-made: linux/raid/md_p.h of the kernel."""

    def make(path: Path) -> None:
        block = bytearray(4 * KIB)
        struct.pack_into("<II", block, 0, 0xA92B4EFC, version)
        if version:
            block[16:32] = bytes(range(16))
            struct.pack_into("<QII", block, 72, 1, 0, 0)  # level 1
            struct.pack_into("<QQQ", block, 128, 0, 4096, offset // 512)
        put(path, (offset, bytes(block)))

    return make


def _zfs(path: Path) -> None:
    uberblock = struct.pack("<QQQQQ", 0x00BAB10C, 5000, 4, 1, 1)
    put(path, *((128 * KIB + index * KIB, uberblock) for index in range(8)), size=64 * MIB)


HAND_MADE: dict[str, Callable[[Path], None]] = {
    "md 0.90": _raid(0, 4 * MIB - 64 * KIB),
    "md 1.0": _raid(1, 4 * MIB - 8 * KIB),
    "md 1.1": _raid(1, 0),
    "md 1.2": _raid(1, 4 * KIB),
    "zfs": _zfs,
}


@pytest.mark.needs("util-linux")
@pytest.mark.parametrize("name", [*superblocks.SECTORS, *HAND_MADE])
def test_what_blkid_knows_is_named_without_udevd(
    name: str, tmp_path: Path, attach_loop: AttachLoop
) -> None:
    path = tmp_path / "disk"
    if name in HAND_MADE:
        HAND_MADE[name](path)
    else:
        superblocks.make(name, path)
    kind, label = blkid(path) or BLKID_2_38[name]
    (found,) = find_content(find_disk(attach_loop(path)))
    assert found.filesystem == kind
    if name in LABELS_READ:
        assert found.label == label


@pytest.mark.needs("util-linux", "fdisk")
def test_partitions_and_an_iso_under_a_table_are_named(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    path, part = tmp_path / "disk", tmp_path / "part"
    superblocks.make("iso", path)
    os.truncate(path, 200 * MIB)
    table = b"label: dos\nstart=2048, size=2048, type=83\nstart=8192, type=7\n"
    subprocess.run(["sfdisk", "--quiet", path], input=table, check=True)
    superblocks.make("ntfs", part)
    with path.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(part.read_bytes())
    node = attach_loop(path)
    assert [(each.name, each.filesystem, each.label) for each in find_content(find_disk(node))] == [
        (node.name, "iso9660", "LABELISO"),
        ("partition 1", None, None),
        ("partition 2", "ntfs", None),
    ]
