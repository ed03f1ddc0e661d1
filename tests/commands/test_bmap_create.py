"""Block maps that may be used on a medium that holds something, shown with bmaptool itself."""

import hashlib
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BufferedReader
from pathlib import Path

import pytest
from bmaptool import BLOCK, bmaptool, needs_bmaptool
from builders import BuiltImage, Layout, copy_in, run
from fakes import MemorySource, RecordedProgress
from fat_reader import read_volume
from free_bytes import free_by_others
from imagecopies import MakeImage
from loopdev import AttachLoop

from balenaflash.commands.bmap import CreatedBmap, compare_with_bmap, create_bmap, left_out_in_use
from balenaflash.errors import ImageError
from balenaflash.formats.contents import Content
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.progress import NO_PROGRESS, Phase
from balenaflash.source.base import open_source
from balenaflash.source.block_map import Bmap, MappedRange, parse, serialise
from balenaflash.source.map_beside import read_bmap
from balenaflash.source.stream import StreamSource
from balenaflash.units import KIB, MIB, Extent

ZEROS_INSIDE = (
    random.Random(4).randbytes(5000) + bytes(60_000) + random.Random(5).randbytes(5000)  # noqa: S311 -- content
)


def created(path: Path) -> CreatedBmap:
    with open_source(path) as source:
        return create_bmap(source, read_table(source), NO_PROGRESS)


def written(bmap: Bmap, path: Path) -> Path:
    path.write_bytes(serialise(bmap))
    return path


@contextmanager
def mounted(node: Path, point: Path, *options: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", ",".join(("noatime", *options)), node, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def with_zeros_inside(built: BuiltImage, tmp_path: Path, attach_loop: AttachLoop) -> BuiltImage:
    """``built`` with a file with zero blocks inside in each filesystem, and stored sparsely."""
    source = tmp_path / "zeros-inside.bin"
    source.write_bytes(ZEROS_INSIDE)
    for partition in built.partitions:
        if partition.filesystem == "vfat":
            copy_in(Path(f"{built.path}@@{partition.extent.start}"), [source])
        elif partition.filesystem == "ext4":
            node = attach_loop(built.path, offset=partition.extent.start)
            with mounted(node, tmp_path / "filled", "rw") as point:
                (point / "zeros-inside.bin").write_bytes(ZEROS_INSIDE)
    # As the image class of balenaOS does it: all zeros become holes.
    sparse = built.path.with_name("sparse.img")
    run("dd", f"if={built.path}", f"of={sparse}", "conv=sparse", "bs=1024", "status=none")
    sparse.replace(built.path)
    return built


def files_of(
    built: BuiltImage, path: Path, tmp_path: Path, attach_loop: AttachLoop
) -> dict[str, bytes]:
    """Every file of every partition; those of ext4 as the kernel reads them."""
    files: dict[str, bytes] = {}
    for partition in built.partitions:
        extent, label = partition.extent, f"{partition.number}:"
        if partition.filesystem == "vfat":
            with path.open("rb") as file:
                file.seek(extent.start)
                volume = read_volume(file.read(extent.size))
            files |= {f"{label}{name}": data or b"" for name, data in volume.files().items()}
        elif partition.filesystem == "ext4":
            node = attach_loop(path, offset=extent.start, read_only=True)
            with mounted(node, tmp_path / "read", "ro", "noload") as point:
                for each in sorted(point.rglob("*")):
                    data = each.read_bytes() if each.is_file() else b""
                    files[f"{label}{each.relative_to(point)}"] = data
    return files


def faults_found(built: BuiltImage, path: Path, tmp_path: Path) -> list[str]:
    """What the checkers have against the filesystems in the file at ``path``."""
    found = []
    part = tmp_path / "partition"
    for partition in built.partitions:
        commands = {"vfat": ["fsck.vfat", "-n"], "ext4": ["e2fsck", "-fn"]}
        if partition.filesystem is None:
            continue
        with path.open("rb") as file:
            file.seek(partition.extent.start)
            part.write_bytes(file.read(partition.extent.size))
        command = [*commands[partition.filesystem], str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found.append(f"{partition.number}: {done.stdout}{done.stderr}")
    return found


def copied_to_used_medium(built: BuiltImage, bmap: Path, attach_loop: AttachLoop) -> Path:
    """A medium of 0xFF after ``bmaptool copy`` to the block device that it is."""
    medium = built.path.with_name("medium")
    with medium.open("wb") as file:
        for _ in range(built.path.stat().st_size // MIB):
            file.write(b"\xff" * MIB)
    node = attach_loop(medium)
    bmaptool("copy", "--bmap", bmap, built.path, node)
    run("blockdev", "--flushbufs", node)
    return medium


@needs_bmaptool
@pytest.mark.needs("root", "util-linux")
@pytest.mark.parametrize("layout", Layout)
def test_a_used_medium_gets_every_file_by_a_map_made_here_and_not_by_one_made_of_holes(
    image: MakeImage, layout: Layout, tmp_path: Path, attach_loop: AttachLoop
) -> None:
    built = with_zeros_inside(image(layout), tmp_path, attach_loop)
    wanted = files_of(built, built.path, tmp_path, attach_loop)
    holding = [name for name in wanted if name.endswith("zeros-inside.bin")]
    assert len(holding) == sum(1 for each in built.partitions if each.filesystem)
    assert {wanted[name] for name in holding} == {ZEROS_INSIDE}

    bmap = created(built.path).bmap
    medium = copied_to_used_medium(built, written(bmap, tmp_path / "a.bmap"), attach_loop)
    assert files_of(built, medium, tmp_path, attach_loop) == wanted
    assert faults_found(built, medium, tmp_path) == []
    # What is listed is the image's, and all the rest was left alone.
    content, image_content = medium.read_bytes(), built.path.read_bytes()
    position = 0
    for extent in [*map(bmap.extent_of, bmap.ranges), Extent(len(content), len(content))]:
        assert content[position : extent.start].count(0xFF) == extent.start - position
        assert content[extent.start : extent.end] == image_content[extent.start : extent.end]
        position = extent.end

    by_holes = tmp_path / "holes.bmap"
    bmaptool("create", "-o", by_holes, built.path)
    medium = copied_to_used_medium(built, by_holes, attach_loop)
    spoiled = files_of_spoiled(built, medium, tmp_path, attach_loop)
    assert all(spoiled[name] != wanted[name] for name in holding if name in spoiled)
    assert any(name in spoiled for name in holding)


def files_of_spoiled(
    built: BuiltImage, medium: Path, tmp_path: Path, attach_loop: AttachLoop
) -> dict[str, bytes]:
    """The files of the ext4 filesystems alone: a strict reader refuses the FAT volumes."""
    ext4 = tuple(each for each in built.partitions if each.filesystem == "ext4")
    only = BuiltImage(
        built.path, built.layout, built.boot_number, built.boot_extent, ext4, built.boot_files
    )
    return files_of(only, medium, tmp_path, attach_loop)


def test_the_checksums_are_those_of_the_ranges(image: MakeImage) -> None:
    built = image(Layout.MSDOS_FAT32)
    with built.path.open("ab") as file:
        file.write(bytes(6 * MIB + 100))
    result = created(built.path)
    content = built.path.read_bytes()
    bmap = result.bmap
    assert bmap.image_size == len(content)
    for mapped in bmap.ranges:
        extent = bmap.extent_of(mapped)
        assert extent.size <= 4 * MIB
        digest = hashlib.sha256(content[extent.start : extent.end]).hexdigest()
        assert mapped.checksum == digest
    listed = sum(bmap.extent_of(mapped).size for mapped in bmap.ranges)
    assert listed == result.bytes_of[Content.DATA] + result.bytes_of[Content.ZERO]
    assert sum(result.bytes_of.values()) == len(content)
    assert parse(serialise(bmap), "written") == bmap


@needs_bmaptool
def test_an_image_that_ends_within_a_block_is_listed_to_its_end(
    image: MakeImage, tmp_path: Path
) -> None:
    built = image(Layout.MSDOS_FAT16)
    with built.path.open("ab") as file:
        file.write(b"behind the last partition")
    path = written(created(built.path).bmap, tmp_path / "a.bmap")
    copy = tmp_path / "copy"
    bmaptool("copy", "--bmap", path, built.path, copy)
    assert copy.read_bytes().endswith(b"behind the last partition")
    assert copy.stat().st_size == built.path.stat().st_size


class FileDecoder:
    """The bytes of a file from start to end, once."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file

    def readinto(self, buffer: memoryview) -> int:
        return self.file.readinto(buffer)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("tells_size", [True, False], ids=["size", "no-size"])
@pytest.mark.parametrize("layout", [Layout.GPT_FAT16, Layout.MSDOS_FAT32])
def test_a_stream_is_read_once_and_its_map_leaves_out_nothing_that_is_in_use(
    image: MakeImage, layout: Layout, *, tells_size: bool
) -> None:
    built = image(layout)
    exact = created(built.path).bmap
    size = built.path.stat().st_size
    with built.path.open("rb") as file:
        # Not repeatable: reading a second time what has passed would be an error.
        stream = StreamSource(
            "stream",
            lambda _at: FileDecoder(file),
            size=size if tells_size else None,
            jump=None,
            is_repeatable=False,
            is_forkable=False,
        )
        progress = RecordedProgress()
        with closing(stream):
            result = create_bmap(stream, read_table(stream), progress)
    blocks, needed = listed_blocks(result.bmap), listed_blocks(exact)
    assert blocks >= needed
    assert len(blocks) - len(needed) < 2 * MIB // BLOCK
    assert result.bytes_of[Content.FREE] > 32 * MIB
    assert progress.phases == [(Phase.BUILD, size if tells_size else None, size)]
    with open_source(built.path) as plain:
        assert compare_with_bmap(plain, result.bmap, NO_PROGRESS) == ()


def listed_blocks(bmap: Bmap) -> set[int]:
    return {block for mapped in bmap.ranges for block in range(mapped.first, mapped.last + 1)}


def test_data_in_a_free_block_is_not_listed(image: MakeImage) -> None:
    built = image(Layout.GPT_FAT16)
    before = created(built.path).bmap
    free = max(set(range(before.blocks)) - listed_blocks(before))
    with built.path.open("r+b") as file:
        file.seek(free * BLOCK)
        file.write(b"left over")
    assert created(built.path).bmap == before


def test_a_filesystem_that_is_not_sound_is_listed_whole(image: MakeImage) -> None:
    built = image(Layout.GPT_FAT16)
    data = built.partitions[-1]
    node = f"{built.path}?offset={data.extent.start}"
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 0", node], check=True, stderr=-1)
    result = created(built.path)
    first, end = data.extent.start // BLOCK, data.extent.end // BLOCK
    assert listed_blocks(result.bmap).issuperset(range(first, end))
    assert list(result.faults) == [data.number]


# compare_with_bmap


VERSION_1_2 = """\
<?xml version="1.0" ?>
<bmap version="1.2">
    <ImageSize> {size} </ImageSize>
    <BlockSize> 4096 </BlockSize>
    <BlocksCount> 4 </BlocksCount>
    <MappedBlocksCount> 3 </MappedBlocksCount>
    <BlockMap>
        <Range> 0-1 </Range>
        <Range> 3 </Range>
    </BlockMap>
</bmap>
"""
VERSION_1_3 = (
    VERSION_1_2.replace('"1.2"', '"1.3"')
    .replace("    <BlockMap>", "    <BmapFileSHA1> {checksum} </BmapFileSHA1>\n    <BlockMap>")
    .replace("<Range> 0-1", '<Range sha1="{first}"> 0-1')
    .replace("<Range> 3", '<Range sha1="{second}"> 3')
)
VERSION_1_4 = (
    VERSION_1_3.replace('"1.3"', '"1.4"')
    .replace("sha1=", "chksum=")
    .replace("BmapFileSHA1", "BmapFileChecksum")
    .replace("    <BlockMap>", "    <ChecksumType> sha256 </ChecksumType>\n    <BlockMap>")
)
CONTENT = random.Random(7).randbytes(2 * BLOCK) + bytes(BLOCK) + b"x" * 100  # noqa: S311 -- content


def by_hand(template: str, kind: str) -> bytes:
    """The map of ``CONTENT``, whose own checksum is calculated with zeros in its place."""
    zeros = "0" * hashlib.new(kind).digest_size * 2
    text = template.format(
        size=len(CONTENT),
        checksum=zeros,
        first=hashlib.new(kind, CONTENT[: 2 * BLOCK]).hexdigest(),
        second=hashlib.new(kind, CONTENT[3 * BLOCK :]).hexdigest(),
    )
    return text.replace(zeros, hashlib.new(kind, text.encode()).hexdigest()).encode()


MADE_BY_HAND = [
    pytest.param(by_hand(VERSION_1_3, "sha1"), id="1.3"),
    pytest.param(by_hand(VERSION_1_4, "sha256"), id="1.4"),
    pytest.param(by_hand(VERSION_1_4.replace("1.4", "2.0"), "sha256"), id="2.0"),
]


@needs_bmaptool
@pytest.mark.parametrize("content", [*MADE_BY_HAND, by_hand(VERSION_1_2, "sha1")])
def test_maps_made_by_hand_are_maps_for_bmaptool(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(CONTENT)
    (tmp_path / "map").write_bytes(content)
    bmaptool("copy", "--bmap", tmp_path / "map", tmp_path / "image", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("content", MADE_BY_HAND)
def test_older_maps_tell_a_changed_byte_in_a_range(content: bytes) -> None:
    bmap = parse(content, "map")
    assert compare_with_bmap(MemorySource(CONTENT), bmap, NO_PROGRESS) == ()
    for at, found in (
        (0, (Extent(0, 2 * BLOCK),)),
        (2 * BLOCK - 1, (Extent(0, 2 * BLOCK),)),
        (2 * BLOCK, ()),
        (3 * BLOCK - 1, ()),
        (3 * BLOCK, (Extent(3 * BLOCK, 3 * BLOCK + 100),)),
        (3 * BLOCK + 99, (Extent(3 * BLOCK, 3 * BLOCK + 100),)),
    ):
        changed = bytearray(CONTENT)
        changed[at] ^= 1
        source = MemorySource(bytes(changed))
        assert compare_with_bmap(source, bmap, NO_PROGRESS) == found


@pytest.mark.parametrize("content", MADE_BY_HAND)
def test_a_changed_digit_in_a_map_is_found(content: bytes) -> None:
    for at, byte in enumerate(content):
        if chr(byte).isdigit() and content[at - 2 : at] != b'="':
            changed = bytearray(content)
            changed[at] = ord("1") if byte != ord("1") else ord("2")
            with pytest.raises(ImageError):
                parse(bytes(changed), "map")


def test_a_map_of_version_1_2_compares_nothing() -> None:
    progress = RecordedProgress()
    bmap = parse(by_hand(VERSION_1_2, "sha1"), "map")
    assert compare_with_bmap(MemorySource(CONTENT), bmap, progress) == ()
    assert progress.phases == [(Phase.VERIFY, 0, 0)]


def test_an_image_of_another_size_is_refused() -> None:
    bmap = parse(by_hand(VERSION_1_3, "sha1"), "map")
    with pytest.raises(ImageError) as refused:
        compare_with_bmap(MemorySource(CONTENT + b"x"), bmap, NO_PROGRESS)
    assert refused.value.code == "bmap-foreign"


def test_adjacent_ranges_that_differ_are_told_as_one_and_progress_counts_what_is_read() -> None:
    content = bytes(10 * MIB)
    digest = hashlib.sha256(content[:MIB]).hexdigest()
    per_range = MIB // BLOCK
    ranges = tuple(
        MappedRange(number * per_range, (number + 1) * per_range - 1, digest)
        for number in (0, 1, 2, 3, 5, 6, 7, 9)
    )
    bmap = Bmap(len(content), BLOCK, ranges)
    changed = bytearray(content)
    for number in (1, 2, 4, 6):
        changed[number * MIB + 77] = 1
    progress = RecordedProgress()
    differing = compare_with_bmap(MemorySource(bytes(changed)), bmap, progress)
    assert differing == (Extent(MIB, 3 * MIB), Extent(6 * MIB, 7 * MIB))
    assert progress.phases == [(Phase.VERIFY, 8 * MIB, 8 * MIB)]


def test_a_range_longer_than_what_is_read_at_a_time_is_compared_whole() -> None:
    content = random.Random(1).randbytes(9 * MIB + 5)  # noqa: S311 -- content
    bmap = Bmap(
        len(content), BLOCK, (MappedRange(0, 9 * 256, hashlib.sha256(content).hexdigest()),)
    )
    assert compare_with_bmap(MemorySource(content), bmap, NO_PROGRESS) == ()
    with pytest.raises(ImageError, match="cannot be read"):
        compare_with_bmap(MemorySource(content, broken_at=6 * MIB), bmap, NO_PROGRESS)


@needs_bmaptool
def test_what_a_map_of_holes_leaves_out_in_use_is_told(image: MakeImage, tmp_path: Path) -> None:
    built = image(Layout.GPT_FAT16)
    bmaptool("create", "-o", tmp_path / "holes.bmap", built.path)
    own = created(built.path)
    with open_source(built.path) as source:
        table: PartitionTable = read_table(source)
        assert left_out_in_use(source, table, own.bmap) == 0
        by_holes = read_bmap(tmp_path / "holes.bmap")
        left_out = left_out_in_use(source, table, by_holes)
    # Blocks of 4 KiB of which a filesystem with smaller ones uses a part are listed whole.
    blocks = listed_blocks(own.bmap) - listed_blocks(by_holes)
    free = {
        block
        for extent in free_by_others(built)
        for block in range(extent.start // KIB, extent.end // KIB)
    }
    used = [
        each for block in blocks for each in range(block * 4, block * 4 + 4) if each not in free
    ]
    assert left_out == len(used) * KIB
