"""The block ioctls, against blockdev and sysfs."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from loopdev import AttachLoop

from balenaflash.rereading import read_device_size
from balenaflash.targets import open_disk

MIB = 1 << 20

pytestmark = pytest.mark.needs("util-linux")


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def blockdev(option: str, node: Path) -> int:
    command: list[str | Path] = ["blockdev", option, node]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_read_is_what_blockdev_says(
    tmp_path: Path, attach_loop: AttachLoop, sector_size: int, *, read_only: bool
) -> None:
    backing = tmp_path / "disk.img"
    backing.write_bytes(bytes(3 * MIB))
    node = attach_loop(backing, read_only=read_only, sector_size=sector_size)
    with opened(node) as descriptor:
        assert read_device_size(descriptor) == blockdev("--getsize64", node) == 3 * MIB
        assert open_disk.read_logical_sector_size(descriptor) == blockdev("--getss", node)
        assert (
            open_disk.read_is_read_only(descriptor) == bool(blockdev("--getro", node)) == read_only
        )


def test_the_disk_sequence_number_is_that_of_sysfs_and_new_for_each_disk(
    tmp_path: Path, attach_loop: AttachLoop
) -> None:
    seen = set()
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(MIB))
        node = attach_loop(tmp_path / name)
        attribute = Path("/sys/block", node.name, "diskseq")
        expected = int(attribute.read_text(encoding="ascii")) if attribute.exists() else None
        with opened(node) as descriptor:
            assert open_disk.read_disk_sequence(descriptor) == expected
        seen.add(expected)
    assert seen == {None} or len(seen) == 2


def test_a_file_answers_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with opened(tmp_path / "file") as descriptor:
        for read in (
            read_device_size,
            open_disk.read_is_read_only,
            open_disk.reread_partition_table,
        ):
            with pytest.raises(OSError, match="Inappropriate ioctl"):
                read(descriptor)
