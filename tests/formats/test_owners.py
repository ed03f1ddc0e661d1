"""The owner of a byte of an image, against what mtools and e2fsprogs say of it."""

import gzip
import re
import subprocess
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import ext4_trees
import fat_reader
import pytest
from builders import BuiltImage, Layout, run, write_tree
from fakes import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st
from imagecopies import MakeImage
from vfat import KINDS, ODD_FILES

from balenaflash.formats.owners import describe_owner
from balenaflash.formats.partitions.model import Partition, PartitionKind
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import Source
from balenaflash.source.opening import open_for_reading
from balenaflash.units import KIB, MIB, Extent

START = MIB
"""Where the partition of an image with one filesystem begins."""

FREE = "free space"
METADATA = "filesystem metadata"
TABLE = "the partition table"

FILES = {
    **ODD_FILES,
    "/EFI/BOOT/grub.cfg": b"set default=boot\n" * 500,
    "/EFI/BOOT/bootx64.efi": bytes(range(256)) * 1200,
    "/system-connections/sample": b"[connection]\n",
}


def owners_in(content: bytes, offsets: Sequence[int]) -> tuple[str | None, ...]:
    """The owners of the bytes at ``offsets`` of a filesystem, the only partition of an image."""
    return owners_of(MemorySource(bytes(START) + content), len(content), offsets)


def owners_of(source: Source, size: int, offsets: Sequence[int]) -> tuple[str | None, ...]:
    extent = Extent(START, START + size)
    partition = Partition(1, extent, PartitionKind.PRIMARY, "0x83", name=None, uuid=None)
    return tuple(describe_owner(source, [partition], START + each) for each in offsets)


def owners_in_image(path: Path, offsets: Sequence[int]) -> tuple[str | None, ...]:
    with open_for_reading(path) as image:
        partitions = read_table(image.source).partitions
        return tuple(describe_owner(image.source, partitions, each) for each in offsets)


@dataclass(frozen=True, slots=True)
class FatMap:
    """A volume and, by fsck.vfat and the tests' own reader, the owner of each byte."""

    content: bytes
    runs: list[tuple[int, str | None]]
    """Where the bytes of each owner begin, in order; each reaches to the next."""

    def owner(self, offset: int) -> str | None:
        return self.runs[bisect_right(self.runs, offset, key=itemgetter(0)) - 1][1]


def make_fat(folder: Path, kind: str) -> FatMap:
    path, tree = folder / "volume.img", folder / "tree"
    run(
        "mkfs.vfat",
        "-n",
        "boot",
        "-S",
        "512",
        *KINDS[kind].options,
        "-C",
        path,
        f"{KINDS[kind].size}",
    )
    write_tree(tree, FILES)
    command = ["mcopy", "-i", str(path), "-sm", *map(str, sorted(tree.iterdir())), "::"]
    subprocess.run(command, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin"}, check=True)
    (tree / "fragmented.bin").write_bytes(b"f" * 20_100)
    run("mdel", "-i", path, "::/UPPER.TXT", "::/exact.bin")
    run("mcopy", "-i", path, tree / "fragmented.bin", "::")
    return map_fat(path)


def map_fat(path: Path) -> FatMap:
    told = run("fsck.vfat", "-n", "-v", path)

    def number(pattern: str) -> int:
        found = re.search(pattern, told)
        assert found, told
        return int(found[1])

    first_table, size = number(r"First FAT starts at byte (\d+)"), number(r"(\d+) bytes per FAT ")
    data = number(r"Data area starts at byte (\d+)")
    content = path.read_bytes()
    starts: dict[int, str | None] = {0: METADATA}
    is_fat32 = "FAT32" in content[82:90].decode("latin-1")
    if not is_fat32:
        starts |= {first_table + 2 * size: "the root directory"}
    volume = fat_reader.read_volume(content)
    used = _clusters(volume)
    root = int.from_bytes(content[44:48], "little")
    while is_fat32 and root < 0x0FFFFFF8:  # fatgen103: this and above ends a chain
        used[root] = "the root directory"
        entry = first_table + 4 * root
        root = int.from_bytes(content[entry : entry + 4], "little")
    for number_ in range(volume.cluster_count):
        start = data + number_ * volume.cluster_size
        starts[start] = used.get(number_ + 2, FREE)
    starts[data + volume.cluster_count * volume.cluster_size] = None
    runs = sorted(starts.items(), key=itemgetter(0))
    kept = [runs[0], *(run for before, run in pairwise(runs) if before[1] != run[1])]
    return FatMap(content, kept)


def _clusters(volume: fat_reader.Volume) -> dict[int, str]:
    """The owner of each cluster below the root."""
    return {
        cluster: f"the directory {path}" if stored.content is None else path
        for path, stored in volume.entries.items()
        for cluster in stored.clusters
    }


@pytest.fixture(scope="module", params=["fat12-2m", "fat16-small-root", "fat32-40m"])
def fat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FatMap:
    return make_fat(tmp_path_factory.mktemp("fat"), request.param)


@pytest.mark.needs("dosfstools", "mtools")
def test_every_part_of_a_fat_volume_is_named_from_its_first_to_its_last_byte(fat: FatMap) -> None:
    starts = [start for start, _ in fat.runs]
    offsets = sorted({*starts, *(start - 1 for start in starts[1:]), len(fat.content) - 1})
    offsets = [each for each in offsets if each < len(fat.content)]
    expected = [fat.owner(each) for each in offsets]
    assert {METADATA, FREE, "/EFI/BOOT/grub.cfg", "the root directory"} <= {*expected}
    assert [owner for _, owner in fat.runs].count("/fragmented.bin") > 1 or "FAT32" in str(
        fat.content[82:90]
    ), "it is to lie in two pieces"
    assert list(owners_in(fat.content, offsets)) == expected


def last_used(fat: FatMap) -> int:
    """Where the last file begins."""
    return max(start for start, owner in fat.runs if owner and owner.startswith("/"))


@pytest.mark.needs("dosfstools", "mtools")
@settings(max_examples=30)
@given(data=st.data())
def test_any_byte_of_a_fat_volume_belongs_to_what_another_reader_says(
    fat: FatMap, data: st.DataObject
) -> None:
    places = st.integers(0, min(len(fat.content), last_used(fat) + 64 * KIB) - 1)
    offsets = data.draw(st.lists(places, min_size=1, max_size=5))
    assert list(owners_in(fat.content, offsets)) == [fat.owner(each) for each in offsets]


@pytest.mark.needs("dosfstools")
@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT32, Layout.GPT_FAT16])
def test_the_files_of_a_boot_partition_lie_where_mshowfat_shows_them(
    layout: Layout, image: MakeImage, tmp_path: Path
) -> None:
    built = image(layout)
    boot = built.boot_extent
    path = tmp_path / "boot.img"
    path.write_bytes(built.path.read_bytes()[boot.start : boot.end])
    told = run("fsck.vfat", "-n", "-v", path)
    data = re.search(r"Data area starts at byte (\d+)", told)
    size = re.search(r"(\d+) bytes per cluster", told)
    assert data, told
    assert size, told
    expected: dict[int, str] = {}
    for name in built.boot_files:
        for span in re.findall(r"<(\d+(?:-\d+)?)>", run("mshowfat", "-i", path, f"::{name}")):
            first, _, last = span.partition("-")
            for cluster in range(int(first), int(last or first) + 1):
                expected[boot.start + int(data[1]) + (cluster - 2) * int(size[1])] = name
    assert set(expected.values()) == {path for path, data in built.boot_files.items() if data}
    assert dict(zip(expected, owners_in_image(built.path, [*expected]), strict=True)) == expected


def debugfs(path: Path, *commands: str) -> str:
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", path],
        input="".join(f"{each}\n" for each in commands),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("\n") == 1, done.stderr  # its name and version, and no error
    return done.stdout


VARIANTS = {
    "default": ["-b", "4096"],
    "small blocks": ["-b", "1024", "-g", "1024"],
    "ext3": ["-t", "ext3", "-b", "1024", "-I", "128"],
    "ext2": ["-t", "ext2", "-b", "2048", "-g", "1024", "-I", "128"],
    "meta_bg": ["-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode,^flex_bg"],
    "quota": ["-b", "1024", "-O", "quota"],
    "no checksums": ["-b", "1024", "-g", "2048", "-O", "^metadata_csum,^64bit,uninit_bg"],
}
LONG_LINK = "x" * 200


@pytest.fixture(scope="module", params=VARIANTS)
def ext4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ext4")
    tree, path, value = folder / "tree", folder / "volume.img", folder / "value"
    files = {"/opt/large": bytes(range(1, 251)) * 3000, "/etc/one": b"1", "/etc/empty": b""}
    write_tree(tree, {**files, "/pieces": b"p" * 40 * 4096})
    (tree / "etc/link").symlink_to(LONG_LINK)
    (tree / "etc/short").symlink_to("one")
    (tree / "etc/hard").hardlink_to(tree / "etc/one")
    ext4_trees.make(path, [*VARIANTS[request.param], "-d", str(tree)], size=16 * MIB)
    value.write_bytes(b"v" * 700)
    punch = [f"punch /pieces {block} {block}" for block in range(1, 40, 2)]
    written_never = [] if request.param in {"ext2", "ext3"} else ["fallocate /pieces 60 69"]
    debugfs(path, *punch, *written_never, f"ea_set -f {value} /opt/large user.long")
    # What debugfs took out of a file it leaves in the group's free count; -D keeps directories.
    subprocess.run(["e2fsck", "-fy", path], check=False, capture_output=True)
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    return path


def names_by_ncheck(path: Path, inodes: set[int]) -> dict[int, str]:
    told = debugfs(path, "ncheck " + " ".join(map(str, inodes)))
    names: dict[int, str] = {}
    for inode, name in re.findall(r"^(\d+)\t(.+)$", told, re.MULTILINE):
        names.setdefault(int(inode), name.replace("//", "/"))
    return names


def owned_by_icheck(path: Path, blocks: Sequence[int]) -> dict[int, int]:
    told = debugfs(
        path,
        *("icheck " + " ".join(map(str, blocks[i : i + 500])) for i in range(0, len(blocks), 500)),
    )
    return {int(b): int(i) for b, i in re.findall(r"^(\d+)\t(\d+)$", told, re.MULTILINE)}


def names_by_stat(path: Path, inodes: dict[int, str]) -> dict[int, tuple[str, int]]:
    """Name of each inode as a user calls it, and the block of its extended attributes or 0."""
    named: dict[int, tuple[str, int]] = {}
    for inode, name in inodes.items():
        told = debugfs(path, f"stat <{inode}>")
        attributes = re.search(r"File ACL: (\d+)", told)
        assert attributes, told
        owner = "the root directory" if name == "/" else f"the directory {name}"
        is_directory = "Type: directory" in told
        named[inode] = (owner if is_directory else name, int(attributes[1]))
    return named


def block_size(path: Path) -> int:
    found = re.search(r"Block size: +(\d+)", run("dumpe2fs", "-h", path))
    assert found
    return int(found[1])


@pytest.mark.needs("e2fsprogs")
def test_every_block_of_an_ext4_filesystem_belongs_to_what_debugfs_says(ext4: Path) -> None:
    content, size = ext4.read_bytes(), block_size(ext4)
    expected = {
        block: FREE
        for extent in ext4_trees.free_by_dumpe2fs(ext4)
        for block in range(extent.start // size, extent.end // size)
    }
    others = [block for block in range(len(content) // size) if block not in expected]
    inodes = owned_by_icheck(ext4, others)
    # Inodes without a name, such as the journal, are metadata; the root has none either.
    named = names_by_stat(ext4, names_by_ncheck(ext4, set(inodes.values())) | {2: "/"})
    for block in others:
        name, attributes = named.get(inodes.get(block, 0), (METADATA, 0))
        expected[block] = METADATA if block == attributes else name
    edges = [0, *(b for b in expected if expected[b] != expected.get(b - 1)), len(expected) - 1]
    blocks = sorted({*edges, *(block - 1 for block in edges if block)})
    offsets = [block * size for block in blocks]
    got = dict(zip(blocks, owners_in(content, offsets), strict=True))
    assert got == {block: expected[block] for block in blocks}
    owners = {"the root directory", "the directory /etc", "/opt/large", "/pieces", "/etc/link"}
    assert {*owners, METADATA, FREE} <= {*got.values()}


@pytest.mark.needs("e2fsprogs")
def test_what_follows_an_ext4_filesystem_in_its_partition_belongs_to_nobody(ext4: Path) -> None:
    content = ext4.read_bytes()
    offsets = [0, 1023, 1024, 2047, len(content), len(content) + 8 * KIB - 1]
    owners = owners_in(content + bytes(8 * KIB), offsets)
    assert owners == (METADATA, METADATA, METADATA, METADATA, None, None)


@pytest.mark.needs("e2fsprogs")
def test_all_of_its_last_block_belongs_to_a_file(ext4: Path) -> None:
    size = block_size(ext4)
    block = re.search(r"\(0\):(\d+)", debugfs(ext4, "stat /etc/one"))
    assert block
    start = int(block[1]) * size
    names = owners_in(ext4.read_bytes(), [start, start + 1, start + size - 1])
    assert names[0] in {"/etc/one", "/etc/hard"}  # one file of two names
    assert names == (names[0],) * 3


@pytest.mark.needs("e2fsprogs")
def test_in_a_filesystem_in_doubt_only_files_and_directories_have_a_name(
    ext4: Path, tmp_path: Path
) -> None:
    (free, *_), size = ext4_trees.free_by_dumpe2fs(ext4), block_size(ext4)
    file = re.search(r"\(0(?:-\d+)?\):(\d+)", debugfs(ext4, "stat /opt/large"))
    assert file
    offsets = [1024, free.start, int(file[1]) * size]
    assert owners_in(ext4.read_bytes(), offsets) == (METADATA, FREE, "/opt/large")
    copy = tmp_path / "volume.img"
    copy.write_bytes(ext4.read_bytes())
    debugfs(copy, "ssv state 2")
    assert owners_in(copy.read_bytes(), offsets) == (None, None, "/opt/large")


@pytest.mark.needs("e2fsprogs")
def test_content_inside_an_inode_is_that_of_its_file(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"/small": b"inside of the inode"})
    path = tmp_path / "volume.img"
    options = ["-O", "inline_data", "-I", "256", "-d", str(tmp_path / "tree")]
    ext4_trees.make(path, options, size=8 * MIB)
    content = path.read_bytes()
    start = content.index(b"inside of the inode")
    owners = owners_in(content, [start, start + 18, start + 19])
    assert owners == ("/small", "/small", METADATA)


def test_the_table_and_the_space_around_partitions_are_told_apart(image: MakeImage) -> None:
    gpt, msdos = image(Layout.GPT_FAT16), image(Layout.MSDOS_FAT16)
    size = gpt.path.stat().st_size
    # UEFI 2.10, section 5.3: header, 32 sectors of entries, the same backwards at the end.
    offsets = [0, 511, 512, 1024, 34 * 512 - 1, 34 * 512, size - 33 * 512, size - 1]
    expected = (TABLE, TABLE, TABLE, TABLE, TABLE, None, TABLE, TABLE)
    assert owners_in_image(gpt.path, offsets) == expected
    extended = next(each for each in msdos.partitions if each.label is None)
    assert owners_in_image(msdos.path, [510, 512, extended.extent.start]) == (TABLE, None, TABLE)


@pytest.mark.parametrize("layout", [Layout.MSDOS_FAT16, Layout.GPT_FAT16])
def test_in_the_image_that_a_flasher_carries_the_file_is_named_too(
    layout: Layout, image: MakeImage
) -> None:
    flasher = image(layout, flasher=True)
    assert flasher.inner is not None
    root = next(each for each in flasher.partitions if each.label == "flash-rootA")
    content = flasher.path.read_bytes()
    carried = next(iter(names_of_images(flasher)))
    config = content.index(flasher.inner.boot_files["/config.json"], root.extent.start)
    kernel = content.index(
        flasher.inner.boot_files["/EFI/BOOT/bootx64.efi"][:2048], root.extent.start
    )
    offset = content.index(flasher.inner.boot_files["/grub.cfg_internal"], root.extent.start)
    assert owners_in_image(flasher.path, [config, kernel, offset, root.extent.start + 1024]) == (
        f"/config.json in partition {flasher.inner.boot_number} of {carried}",
        f"/EFI/BOOT/bootx64.efi in partition {flasher.inner.boot_number} of {carried}",
        f"/grub.cfg_internal in partition {flasher.inner.boot_number} of {carried}",
        METADATA,
    )


def names_of_images(flasher: BuiltImage) -> list[str]:
    root = next(each for each in flasher.partitions if each.label == "flash-rootA")
    target = f"{flasher.path}?offset={root.extent.start}"
    told = subprocess.run(
        ["debugfs", "-R", "ls -p /opt", target], capture_output=True, text=True, check=True
    ).stdout
    return [f"/opt/{name}" for name in re.findall(r"/([^/\n]+\.balenaos-img)/", told)]


def test_files_in_a_compressed_image_are_named_too(image: MakeImage, tmp_path: Path) -> None:
    built = image(Layout.MSDOS_FAT16)
    content = built.path.read_bytes()
    packed = tmp_path / "image.gz"
    packed.write_bytes(gzip.compress(content, 1))
    offsets = [content.index(built.boot_files[path]) for path in ("/os-release", "/config.json")]
    assert owners_in_image(packed, offsets) == ("/os-release", "/config.json")


class ReadOnce(MemorySource):
    def fork(self) -> Source | None:
        return None


@pytest.mark.needs("dosfstools", "mtools")
def test_nothing_is_said_of_a_source_that_cannot_be_read_again(fat: FatMap) -> None:
    image, size = bytes(START) + fat.content, len(fat.content)
    assert owners_of(MemorySource(image), size, [0]) == (METADATA,)
    assert owners_of(ReadOnce(image), size, [0, 5000]) == (None, None)
    assert owners_of(MemorySource(image, broken_at=START), size, [0, 5000]) == (None, None)


@pytest.mark.needs("dosfstools", "mtools")
@settings(max_examples=10)
@given(data=st.data())
def test_whatever_is_damaged_in_a_fat_volume_is_no_error(fat: FatMap, data: st.DataObject) -> None:
    end = last_used(fat)
    owners_in(spoiled(fat.content, end, data), range(0, end, 50_001))


@pytest.mark.needs("e2fsprogs")
@settings(max_examples=10)
@given(data=st.data())
def test_whatever_is_damaged_in_an_ext4_filesystem_is_no_error(
    ext4: Path, data: st.DataObject
) -> None:
    content = ext4.read_bytes()
    owners_in(spoiled(content, 256 * KIB, data), range(0, len(content), 1_000_001))


def spoiled(content: bytes, end: int, data: st.DataObject) -> bytes:
    damaged = bytearray(content)
    places = st.tuples(st.integers(0, end), st.binary(min_size=1, max_size=8))
    for start, new in data.draw(st.lists(places, min_size=1, max_size=30)):
        damaged[start : start + len(new)] = new
    return bytes(damaged)
