"""What is called free is free by dumpe2fs, and by the tests' own reader of FAT."""

import struct
import subprocess
from pathlib import Path

import pytest
from builders import BuiltImage, ExpectedPartition, Layout, run
from fakes import MemorySource
from fat_reader import _Reader
from free_bytes import free_by_fat_reader, free_by_others, merged
from hypothesis import given
from hypothesis import strategies as st
from imagecopies import MakeImage

from balenaflash.formats.contents import Allocation, FreeCursor, open_free_space
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import open_source
from balenaflash.units import KIB, MIB, Extent


def free_here(path: Path) -> tuple[list[Extent], dict[int, str]]:
    with open_source(path) as source:
        allocation = Allocation(source, read_table(source))
        return merged(list(allocation.free_extents())), allocation.faults


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("flasher", [False, True], ids=["raw", "flasher"])
def test_exactly_what_other_tools_call_free_is_free(
    image: MakeImage, layout: Layout, *, flasher: bool
) -> None:
    built = image(layout, flasher=flasher)
    free, faults = free_here(built.path)
    assert free == free_by_others(built)
    assert sum(extent.size for extent in free) > 16 * MIB
    assert faults == {}


def partition_of(built: BuiltImage, label: str) -> ExpectedPartition:
    return next(each for each in built.partitions if each.label == label)


def test_nothing_is_free_in_a_fat_volume_with_a_problem(image: MakeImage) -> None:
    built = image(Layout.MSDOS_FAT16)
    boot = built.boot_extent
    with built.path.open("r+b") as file:
        content = file.read()
        reader = _Reader(content[boot.start : boot.end])
        cluster = reader.table.index(0)
        # An entry of one table alone is no longer 0: the two copies differ.
        file.seek(boot.start + reader.table_start + 2 * cluster)
        file.write(struct.pack("<H", 0xFFFF))
    free, faults = free_here(built.path)
    assert free
    assert not any(extent.overlaps(boot) for extent in free)
    assert list(faults) == [built.boot_number]
    assert "differ" in faults[built.boot_number]


def test_a_bad_cluster_is_not_free(image: MakeImage) -> None:
    built = image(Layout.MSDOS_FAT16)
    boot = built.boot_extent
    with built.path.open("r+b") as file:
        reader = _Reader(file.read()[boot.start : boot.end])
        cluster = reader.table.index(0) + 5
        for table in range(2):
            file.seek(boot.start + reader.table_start + table * reader.table_size + 2 * cluster)
            file.write(struct.pack("<H", 0xFFF7))
    bad = boot.start + reader.data_start + (cluster - 2) * reader.cluster_size
    free, faults = free_here(built.path)
    assert faults == {}
    assert not any(extent.contains(bad) for extent in free)
    assert any(extent.end == bad for extent in free)
    assert any(extent.start == bad + reader.cluster_size for extent in free)


@pytest.mark.parametrize(
    "request_of_debugfs", ["set_super_value state 0", "feature needs_recovery"]
)
def test_nothing_is_free_in_an_ext4_filesystem_that_was_not_unmounted(
    image: MakeImage, request_of_debugfs: str
) -> None:
    built = image(Layout.GPT_FAT16)
    data = partition_of(built, "resin-data")
    node = f"{built.path}?offset={data.extent.start}"
    subprocess.run(["debugfs", "-w", "-R", request_of_debugfs, node], check=True, stderr=-1)
    free, faults = free_here(built.path)
    assert free
    assert not any(extent.overlaps(data.extent) for extent in free)
    assert list(faults) == [data.number]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(4 * MIB), id="nothing"),
        pytest.param(bytes(4 * KIB - 10) + b"SWAPSPACE2" + bytes(MIB), id="swap"),
        pytest.param(b"hsqs" + bytes(24) + b"\4\0" + bytes(MIB), id="squashfs"),
        pytest.param(b"LUKS\xba\xbe\0\2" + bytes(MIB), id="luks"),
    ],
)
def test_nothing_is_free_where_no_filesystem_is_understood(content: bytes) -> None:
    assert open_free_space(MemorySource(content), Extent(0, len(content))) is None


def test_what_lies_behind_the_last_cluster_and_behind_the_filesystem_is_in_use(
    tmp_path: Path,
) -> None:
    volume = tmp_path / "volume"
    # Clusters of 8 KiB in a volume that does not end with one, in a larger partition.
    run("mkfs.vfat", "-F", "16", "-s", "16", "-C", volume, "40961")
    content = volume.read_bytes() + bytes(3 * MIB)
    extent = Extent(0, len(content))
    space = open_free_space(MemorySource(content), extent)
    assert space is not None
    free = list(space.free_extents())
    assert free == merged(list(free_by_fat_reader(content, extent)))
    assert free[-1].end < 40961 * KIB


# FreeCursor


@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=20),
    cuts=st.lists(st.integers(1, 30), max_size=20),
)
def test_a_cursor_gives_every_free_byte_once(
    lengths: list[tuple[int, int]], cuts: list[int]
) -> None:
    free = []
    position = 0
    for gap, length in lengths:
        free.append(Extent(position + gap, position + gap + length))
        position += gap + length
    cursor = FreeCursor(iter(free))
    start = 0
    for cut in cuts:
        taken = cursor.take(Extent(start, start + cut))
        for offset in range(start, start + cut):
            assert any(each.contains(offset) for each in free) == (
                sum(each.contains(offset) for each in taken) == 1
            )
        start += cut
