"""What is said to lie at a place of an image, against what mtools and e2fsprogs say of it."""

import gzip
import re
import subprocess
from bisect import bisect_right
from collections.abc import Callable, Sequence
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

from balenaflash.formats.owners import describe_owners
from balenaflash.formats.partitions.model import Partition, PartitionKind
from balenaflash.formats.partitions.table import read_table
from balenaflash.source.base import Source
from balenaflash.source.opening import open_for_reading
from balenaflash.units import KIB, MIB, Extent

START = MIB
"""Where the partition of an image with one filesystem begins."""

FILES = {
    **ODD_FILES,
    "/EFI/BOOT/grub.cfg": b"set default=boot\n" * 500,
    "/EFI/BOOT/bootx64.efi": bytes(range(256)) * 1200,
    "/system-connections/sample": b"[connection]\n",
}


def owners_in(content: bytes, offsets: Sequence[int]) -> tuple[str | None, ...]:
    """What lies at ``offsets`` of a filesystem that is the only partition of an image."""
    return owners_of(MemorySource(bytes(START) + content), len(content), offsets)


def owners_of(source: Source, size: int, offsets: Sequence[int]) -> tuple[str | None, ...]:
    extent = Extent(START, START + size)
    partition = Partition(1, extent, PartitionKind.PRIMARY, "0x83", name=None, uuid=None)
    return describe_owners(source, [partition], [START + each for each in offsets])


def owners_in_image(path: Path, offsets: Sequence[int]) -> tuple[str | None, ...]:
    with open_for_reading(path) as image:
        partitions = read_table(image.source).partitions
        return describe_owners(image.source, partitions, offsets)


@dataclass(frozen=True, slots=True)
class FatMap:
    """A volume and, by fsck.vfat and the tests' own reader, what lies where in it."""

    content: bytes
    runs: list[tuple[int, str]]
    """Where what begins, in order; each reaches to the next."""

    def owner(self, offset: int) -> str:
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
    starts = {0: "the boot sector", 512: "the reserved sectors"}
    is_fat32 = "FAT32" in content[82:90].decode("latin-1")
    if is_fat32:  # sectors 1 and 6, where mkfs.vfat puts them
        starts |= {512: "the FSInfo sector", 1024: "the reserved sectors"}
        starts |= {6 * 512: "the backup of the boot sector", 7 * 512: "the reserved sectors"}
    starts |= {first_table: "the first file allocation table"}
    starts |= {first_table + size: "the second file allocation table"}
    if not is_fat32:
        starts |= {first_table + 2 * size: "the root directory"}
    volume = fat_reader.read_volume(content)
    used = _clusters(volume)
    root = int.from_bytes(content[44:48], "little")
    while is_fat32 and root < 0x0FFFFFF8:  # fatgen103: this and above ends a chain
        used[root] = ("the root directory", volume.cluster_size)
        entry = first_table + 4 * root
        root = int.from_bytes(content[entry : entry + 4], "little")
    for number_ in range(volume.cluster_count):
        start = data + number_ * volume.cluster_size
        owner, length = used.get(number_ + 2, ("free space", volume.cluster_size))
        starts[start] = owner
        if length < volume.cluster_size:
            starts[start + length] = f"the space behind the end of {owner}"
    starts[data + volume.cluster_count * volume.cluster_size] = "the space behind the last cluster"
    runs = sorted(starts.items())
    kept = [runs[0], *(run for before, run in pairwise(runs) if before[1] != run[1])]
    return FatMap(content, kept)


def _clusters(volume: fat_reader.Volume) -> dict[int, tuple[str, int]]:
    """The owner of each cluster below the root and how many of its bytes are content."""
    used: dict[int, tuple[str, int]] = {}
    for path, stored in volume.entries.items():
        for index, cluster in enumerate(stored.clusters):
            if stored.content is None:
                used[cluster] = (f"the directory {path}", volume.cluster_size)
            else:
                left = len(stored.content) - index * volume.cluster_size
                used[cluster] = (path, min(left, volume.cluster_size))
    return used


@pytest.fixture(scope="module", params=["fat12-2m", "fat16-small-root", "fat32-40m"])
def fat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FatMap:
    return make_fat(tmp_path_factory.mktemp("fat"), request.param)


@pytest.mark.needs("dosfstools", "mtools")
def test_every_part_of_a_fat_volume_is_named_from_its_first_to_its_last_byte(fat: FatMap) -> None:
    starts = [start for start, _ in fat.runs]
    offsets = sorted({*starts, *(start - 1 for start in starts[1:]), len(fat.content) - 1})
    offsets = [each for each in offsets if each < len(fat.content)]
    expected = [fat.owner(each) for each in offsets]
    assert {"the boot sector", "free space", "/EFI/BOOT/grub.cfg", "the root directory"} <= {
        *expected
    }
    assert [owner for _, owner in fat.runs].count("/fragmented.bin") > 1 or "FAT32" in str(
        fat.content[82:90]
    ), "it is to lie in two pieces"
    assert list(owners_in(fat.content, offsets)) == expected


@pytest.mark.needs("dosfstools", "mtools")
@settings(max_examples=30)
@given(data=st.data())
def test_any_byte_of_a_fat_volume_belongs_to_what_another_reader_says(
    fat: FatMap, data: st.DataObject
) -> None:
    last_used = max(start for start, owner in fat.runs if owner.startswith("/"))
    places = st.integers(0, min(len(fat.content), last_used + 64 * KIB) - 1)
    offsets = data.draw(st.lists(places, min_size=1, max_size=20))
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
    debugfs(path, *punch, f"ea_set -f {value} /opt/large user.long")
    # What debugfs took out of a file it leaves in the group's free count; -D keeps directories.
    subprocess.run(["e2fsck", "-fy", path], check=False, capture_output=True)
    subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
    return path


def named_by_dumpe2fs(path: Path) -> dict[int, str]:
    """The blocks of each group's own metadata."""
    patterns = {
        r"(?:Primary) superblock at (\d+)": "the superblock",
        r"(?:Backup) superblock at (\d+)": "a backup of the superblock",
        r"Group descriptors? at (\d+(?:-\d+)?)": "group descriptors",
        r"Reserved GDT blocks at (\d+(?:-\d+)?)": "the blocks reserved for group descriptors",
        r"Block bitmap at (\d+)": "a block bitmap",
        r"Inode bitmap at (\d+)": "an inode bitmap",
        r"Inode table at (\d+(?:-\d+)?)": "an inode table",
    }
    told = run("dumpe2fs", path)
    found: dict[int, str] = {}
    for pattern, owner in patterns.items():
        for span in re.findall(pattern, told):
            first, _, last = span.partition("-")
            found |= dict.fromkeys(range(int(first), int(last or first) + 1), owner)
    return found


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


RESERVED = {
    3: "the quota of users",
    4: "the quota of groups",
    7: "the blocks reserved for group descriptors",
    8: "the journal",
}


def owner_by_debugfs(path: Path, inode: int, name: str) -> Callable[[int], str]:
    """Names the blocks of an inode as ``stat`` of debugfs tells of them."""
    told = debugfs(path, f"stat <{inode}>")
    found = re.search(r"Type: (\w+)", told)
    assert found, told
    prefix = {"regular": "", "directory": "the directory ", "symlink": "the symbolic link "}[
        found[1]
    ]
    owner = "the root directory" if name == "/" else prefix + name
    lists = {int(block) for block in re.findall(r"\((?:[DT]?IND|ETB\d+)\):(\d+)", told)}
    sort = "extent tree" if "EXTENTS:" in told else "indirect blocks"
    attributes = re.search(r"File ACL: (\d+)", told)
    assert attributes, told

    def name_block(block: int) -> str:
        if block in lists:
            return f"the {sort} of {owner}"
        if block == int(attributes[1]):
            return f"the extended attributes of {owner}"
        return owner

    return name_block


@pytest.mark.needs("e2fsprogs")
def test_every_block_of_an_ext4_filesystem_is_named_as_debugfs_and_dumpe2fs_say(
    ext4: Path,
) -> None:
    content = ext4.read_bytes()
    found = re.search(r"Block size: +(\d+)", run("dumpe2fs", "-h", ext4))
    assert found
    size = int(found[1])
    expected = {
        block: "free space"
        for extent in ext4_trees.free_by_dumpe2fs(ext4)
        for block in range(extent.start // size, extent.end // size)
    }
    expected |= named_by_dumpe2fs(ext4)
    others = [block for block in range(len(content) // size) if block not in expected and block]
    inodes = owned_by_icheck(ext4, others)
    names = names_by_ncheck(ext4, set(inodes.values()))
    reserved = RESERVED | {
        int(inode): "the orphan file"
        for inode in re.findall(
            r"^Orphan file inode: +(\d+)$", run("dumpe2fs", "-h", ext4), re.MULTILINE
        )
    }
    namers = {
        inode: owner_by_debugfs(ext4, inode, names.get(inode, "/"))
        for inode in set(inodes.values()) - set(reserved)
    }
    for block, inode in inodes.items():
        expected[block] = reserved[inode] if inode in reserved else namers[inode](block)
    offsets = [block * size for block in sorted(expected) if block]
    described = owners_in(content, offsets)
    got = {offset // size: owner for offset, owner in zip(offsets, described, strict=True)}
    tables = {block for block, owner in expected.items() if owner == "an inode table"}
    for block in tables:  # the inodes in them have names, see the next test
        assert got[block] is not None
        assert re.match("an inode table|the inode of ", got.pop(block) or "")
    assert got == {b: owner for b, owner in expected.items() if b and b not in tables}
    assert {"the root directory", "/opt/large", "the extended attributes of /opt/large"} <= {
        *got.values()
    }
    assert {"the symbolic link /etc/link"} <= {*got.values()}
    assert {"the extent tree of /pieces", "the indirect blocks of /pieces"} & {*got.values()}


@pytest.mark.needs("e2fsprogs")
def test_an_inode_is_named_by_what_it_is_of(ext4: Path) -> None:
    names = {"/opt/large": "/opt/large", "/etc": "the directory /etc", "/": "the root directory"}
    names |= {"/etc/short": "the symbolic link /etc/short"}
    size = re.search(r"Block size: +(\d+)", run("dumpe2fs", "-h", ext4))
    assert size
    places = {}
    for path, owner in names.items():
        told = debugfs(ext4, f"imap {path}")
        found = re.search(r"located at block (\d+), offset 0x([0-9a-f]+)", told)
        assert found, told
        places[int(found[1]) * int(size[1]) + int(found[2], 16)] = f"the inode of {owner}"
    content = ext4.read_bytes()
    offsets = [*places, *(start + 127 for start in places)]
    assert list(owners_in(content, offsets)) == [*places.values(), *places.values()]


@pytest.mark.needs("e2fsprogs")
def test_the_start_and_the_end_of_an_ext4_partition_are_named(ext4: Path) -> None:
    content = ext4.read_bytes()
    partition = content + bytes(8 * KIB)
    offsets = [0, 1023, 1024, 2047, len(content), len(partition) - 1]
    boot, block, behind = "the boot sectors", "the superblock", "the space behind the filesystem"
    assert owners_in(partition, offsets) == (boot, boot, block, block, behind, behind)


@pytest.mark.needs("e2fsprogs")
def test_what_a_file_does_not_use_of_its_last_block_is_told_from_its_content(ext4: Path) -> None:
    size = re.search(r"Block size: +(\d+)", run("dumpe2fs", "-h", ext4))
    block = re.search(r"\(0\):(\d+)", debugfs(ext4, "stat /etc/one"))
    assert size
    assert block
    start = int(block[1]) * int(size[1])
    names = owners_in(ext4.read_bytes(), [start, start + 1, start + int(size[1]) - 1])
    assert {names[0]} <= {"/etc/one", "/etc/hard"}  # one file of two names
    assert names[1:] == (f"the space behind the end of {names[0]}",) * 2


@pytest.mark.needs("e2fsprogs")
def test_the_block_against_mounting_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "volume.img"
    ext4_trees.make(path, ["-b", "1024", "-O", "mmp"], size=8 * MIB)
    content = path.read_bytes()
    places = [
        start
        for start in range(0, len(content), KIB)
        if content[start : start + 4] == b"\x50\x4d\x4d\x00"
    ]
    assert owners_in(content, places) == ("the block against mounting twice (feature mmp)",)


@pytest.mark.needs("e2fsprogs")
def test_content_inside_an_inode_is_that_of_its_file(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"/small": b"inside of the inode"})
    path = tmp_path / "volume.img"
    options = ["-O", "inline_data", "-I", "256", "-d", str(tmp_path / "tree")]
    ext4_trees.make(path, options, size=8 * MIB)
    content = path.read_bytes()
    start = content.index(b"inside of the inode")
    owners = owners_in(content, [start, start + 18, start + 19])
    assert owners == ("/small", "/small", "the inode of /small")


def test_the_table_and_the_space_around_partitions_are_told_apart(image: MakeImage) -> None:
    gpt, msdos = image(Layout.GPT_FAT16), image(Layout.MSDOS_FAT16)
    size = gpt.path.stat().st_size
    record, table = "the master boot record", "the partition table"
    # UEFI 2.10, section 5.3: header, 32 sectors of entries, the same backwards at the end.
    offsets = [0, 511, 512, 1024, 34 * 512 - 1, 34 * 512, size - 33 * 512, size - 1]
    expected = (record, record, table, table, table, None, table, table)
    assert owners_in_image(gpt.path, offsets) == expected
    extended = next(each for each in msdos.partitions if each.label is None)
    assert owners_in_image(msdos.path, [510, 512, extended.extent.start]) == (record, None, table)


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
        "the superblock",
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
    assert owners_of(MemorySource(image), size, [0]) == ("the boot sector",)
    assert owners_of(ReadOnce(image), size, [0, 5000]) == (None, None)
    assert owners_of(MemorySource(image, broken_at=START), size, [0, 5000]) == (None, None)


@pytest.mark.needs("dosfstools", "mtools")
@settings(max_examples=10)
@given(data=st.data())
def test_whatever_is_damaged_in_a_fat_volume_is_no_error(fat: FatMap, data: st.DataObject) -> None:
    last_used = max(start for start, owner in fat.runs if owner.startswith("/"))
    owners_in(spoiled(fat.content, last_used, data), range(0, last_used, 6151))


@pytest.mark.needs("e2fsprogs")
@settings(max_examples=10)
@given(data=st.data())
def test_whatever_is_damaged_in_an_ext4_filesystem_is_no_error(
    ext4: Path, data: st.DataObject
) -> None:
    content = ext4.read_bytes()
    owners_in(spoiled(content, 256 * KIB, data), range(0, len(content), 70_001))


def spoiled(content: bytes, end: int, data: st.DataObject) -> bytes:
    damaged = bytearray(content)
    places = st.tuples(st.integers(0, end), st.binary(min_size=1, max_size=8))
    for start, new in data.draw(st.lists(places, min_size=1, max_size=30)):
        damaged[start : start + len(new)] = new
    return bytes(damaged)
