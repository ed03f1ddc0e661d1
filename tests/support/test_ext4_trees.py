"""Random ext4 filesystems: every file as the kernel shows it, every block free as dumpe2fs says."""

import os
import random
from pathlib import Path

import ext4_trees
import pytest
from ext4_trees import Record

from balenaflash.formats.ext4.volume import EntryKind, Ext4Entry, Ext4File, Ext4Volume
from balenaflash.source.base import open_source
from balenaflash.units import KIB, MIB, Extent

pytestmark = pytest.mark.needs("root", "loop devices", "e2fsprogs", "util-linux")

TREES = int(os.environ.get("BALENAFLASH_EXT4_TREES", "12"))
START = 68 * KIB  # of the filesystem in its image


def record_entry(volume: Ext4Volume, entry: Ext4Entry) -> Record:
    content = ""
    match entry.kind:
        case EntryKind.FILE:
            file = Ext4File(volume, entry, entry.path)
            content = ext4_trees.digest(file.read(0, file.size))
        case EntryKind.SYMLINK:
            content = volume.read_link(entry)
        case _:
            pass
    return Record(str(entry.kind), entry.inode, content)


def found_by_name(volume: Ext4Volume, names: list[str]) -> dict[str, int]:
    found = {name: volume.find(name, follow=False) for name in names}
    return {name: entry.inode for name, entry in found.items() if entry is not None}


@pytest.mark.parametrize("seed", range(TREES))
def test_all_of_a_random_tree_is_as_the_kernel_shows_it(seed: int, tmp_path: Path) -> None:
    chance = random.Random(f"ext4 {seed}")  # noqa: S311 -- to be the same each time
    image, size = tmp_path / "image", chance.randrange(16 * MIB, 48 * MIB, MIB)
    arguments = ext4_trees.random_mkfs(chance)
    print("mkfs.ext4", *arguments)  # noqa: T201 -- shown if it fails
    ext4_trees.make(image, arguments, size=size, offset=START)
    with ext4_trees.mounted(image, tmp_path / "point", offset=START):
        ext4_trees.fill(tmp_path / "point", chance, block_size=int(arguments[1]))
    # Mounted anew: a small file in an inode, made longer, reads otherwise until the unmount
    # (Linux 6.18, inline_data without extents).
    with ext4_trees.mounted(image, tmp_path / "point", offset=START, options="ro"):
        expected = ext4_trees.record(tmp_path / "point")
    partition = Extent(START, START + size)
    with open_source(image) as source:
        volume = Ext4Volume.open(source, partition)
        assert {e.path: record_entry(volume, e) for e in volume.walk()} == expected
        names = chance.sample(sorted(expected), 10)
        assert found_by_name(volume, names) == {name: expected[name].inode for name in names}
        assert volume.problems == ()
        free = list(volume.free_extents())
        assert free == ext4_trees.free_by_dumpe2fs(image, offset=START)
        assert sum(extent.size for extent in free) == volume.free_bytes
        window = Extent(*sorted(chance.choices(range(partition.end + MIB), k=2)))
        assert list(volume.free_extents(window)) == list(clip(free, window))


def clip(extents: list[Extent], window: Extent) -> list[Extent]:
    return [
        Extent(max(extent.start, window.start), min(extent.end, window.end))
        for extent in extents
        if extent.overlaps(window)
    ]
