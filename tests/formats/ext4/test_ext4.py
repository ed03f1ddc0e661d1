"""Ext4 filesystems as mkfs makes them, found, listed and read; and what is said of odd ones."""

import re
import subprocess
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import ext4_trees
import pytest
from fakes import MemorySource

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.content import FileMap
from balenaflash.formats.ext4.volume import EntryKind, Ext4File, Ext4Volume
from balenaflash.units import KIB, MIB, Extent

pytestmark = pytest.mark.needs("e2fsprogs")

SIZE = 16 * MIB
BIG = bytes(range(251)) * 4000
FILES = {
    "/usr/lib/os-release": b"ID=balena-os\nVERSION=6.0.0\n",
    "/opt/inner.balenaos-img": BIG,
    "/empty": b"",
}
LINKS = {
    "/etc": "usr/lib",
    "/usr/lib/absolute": "/opt/inner.balenaos-img",
    "/usr/lib/relative": "../../opt/./inner.balenaos-img",
    "/opt/above": "../../../../etc/os-release",
    "/opt/chain": "above",
    "/dangling": "no/such/file",
    "/loop": "loop",
    "/through-a-file": "empty/os-release",
    "/long": "/." * 100 + "/empty",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for path, content in FILES.items():
        place = root / path[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    for path, target in LINKS.items():
        (root / path[1:]).symlink_to(target)
    return root


def build(tree: Path, image: Path, *arguments: str, debugfs: Sequence[str] = ()) -> bytes:
    """A filesystem with the content of ``tree``, then changed by debugfs commands."""
    ext4_trees.make(image, ["-b", "1024", "-d", str(tree), *arguments], size=SIZE)
    for command in debugfs:
        run_debugfs(image, command)
    return image.read_bytes()


def run_debugfs(image: Path, command: str) -> str:
    run = subprocess.run(
        ["debugfs", "-w", "-R", command, image], capture_output=True, text=True, check=True
    )
    assert run.stderr.count("\n") == 1, run.stderr  # its name and version, and no error
    return run.stdout


def open_bytes(data: bytes, extent: Extent | None = None) -> Ext4Volume:
    return Ext4Volume.open(MemorySource(data), extent or Extent(0, len(data)))


def found(volume: Ext4Volume, path: str, *, follow: bool = True) -> str | None:
    entry = volume.find(path, follow=follow)
    return None if entry is None else entry.path


def code_of(volume: Ext4Volume, path: str, *, limit: int = SIZE) -> str:
    with pytest.raises(ImageError) as caught:
        volume.read_file(path, limit)
    return caught.value.code


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_a_filesystem_of_mkfs_has_no_problem(kind: str, tree: Path, tmp_path: Path) -> None:
    data = build(tree, tmp_path / "image", "-t", kind)
    volume = open_bytes(data)
    found = re.search(
        r"Free blocks: +(\d+)",
        subprocess.check_output(["dumpe2fs", "-h", str(tmp_path / "image")], text=True),
    )
    assert found
    assert (volume.total_bytes, volume.free_bytes) == (SIZE, int(found[1]) * 1024)
    assert volume.problems == ()


def test_a_filesystem_of_mkfs_is_read_inside_a_larger_partition(tree: Path, tmp_path: Path) -> None:
    data = build(tree, tmp_path / "image")
    start = 3 * 512
    volume = open_bytes(b"\xff" * start + data + b"\xff" * MIB, Extent(start, start + SIZE + MIB))
    contents = {
        entry.path: volume.read_file(entry, SIZE)
        for entry in volume.walk()
        if entry.kind is EntryKind.FILE
    }
    links = {
        entry.path: volume.read_link(entry)
        for entry in volume.walk()
        if entry.kind is EntryKind.SYMLINK
    }
    assert (contents, links) == (FILES, LINKS)
    expected = ext4_trees.free_by_dumpe2fs(tmp_path / "image")
    shifted = [Extent(extent.start + start, extent.end + start) for extent in expected]
    assert list(volume.free_extents()) == shifted


def test_a_filesystem_larger_than_its_partition_is_refused(tree: Path, tmp_path: Path) -> None:
    data = build(tree, tmp_path / "image")
    with pytest.raises(
        ImageError, match=rf"larger \({SIZE} bytes\) than .* \({SIZE - 512} bytes\)"
    ):
        open_bytes(data, Extent(0, SIZE - 512))


@pytest.mark.parametrize("data", [bytes(SIZE), b"\xff" * SIZE, bytes(1024), b""])
def test_what_is_no_filesystem_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        open_bytes(data)


def test_links_are_followed_inside_the_filesystem(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image"))
    inner, release = "/opt/inner.balenaos-img", "/usr/lib/os-release"
    assert found(volume, "/etc/absolute") == inner
    assert found(volume, "/etc/relative") == inner
    assert found(volume, "/opt/chain") == release
    assert found(volume, "/opt/../../etc//./os-release") == release
    assert found(volume, "/etc") == "/usr/lib"
    assert found(volume, "/etc/../lib/../..") == "/"
    assert found(volume, "/etc", follow=False) == "/etc"
    assert found(volume, "/etc/absolute", follow=False) == "/usr/lib/absolute"
    assert found(volume, "/long") == "/empty"
    assert volume.read_file("/opt/chain", 100) == FILES[release]
    nowhere = ("/dangling", "/loop", "/through-a-file", "/empty/x", "/Empty", "/no/such")
    assert [found(volume, path) for path in nowhere] == [None] * len(nowhere)


def test_a_directory_is_listed_with_what_it_holds(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image"))
    entries = {entry.path: entry for entry in volume.list("/etc")}
    assert set(entries) == {f"/usr/lib/{name}" for name in ("os-release", "absolute", "relative")}
    entry = entries["/usr/lib/os-release"]
    assert (entry.name, entry.size, entry.kind) == ("os-release", 27, EntryKind.FILE)


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "caf\udce9").write_bytes(b"latin")
    volume = open_bytes(build(root, tmp_path / "image"))
    assert volume.read_file("/caf\udce9", 10) == b"latin"
    assert "/caf\udce9" in {entry.path for entry in volume.walk()}


def test_what_cannot_be_read_says_why(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image"))
    assert code_of(volume, "/none") == "no-such-file"
    assert code_of(volume, "/usr") == "not-a-file"
    assert code_of(volume, "/opt/inner.balenaos-img", limit=len(BIG) - 1) == "file-too-large"
    file = volume.find("/empty")
    assert file is not None
    with pytest.raises(ImageError, match="is not a directory"):
        volume.list("/empty")
    with pytest.raises(ImageError, match="is not a symbolic link"):
        volume.read_link(file)


@pytest.mark.parametrize(
    ("kind", "command", "code"),
    [
        ("ext4", "feature needs_recovery", "ext4-needs-recovery"),
        ("ext4", "ssv state 3", "ext4-has-errors"),
        ("ext2", "ssv state 0", "ext4-not-clean"),
    ],
)
def test_a_filesystem_in_doubt_is_read_but_nothing_of_it_is_free(
    kind: str, command: str, code: str, tree: Path, tmp_path: Path
) -> None:
    volume = open_bytes(build(tree, tmp_path / "image", "-t", kind, debugfs=[command]))
    assert [problem.code for problem in volume.problems] == [code]
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG
    assert list(volume.free_extents()) == []


def test_bigalloc_is_read_but_nothing_of_it_is_free(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image", "-O", "bigalloc", "-C", "16384"))
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG
    assert list(volume.free_extents()) == []


@pytest.mark.parametrize(
    ("bit", "name"), [(0x1, "compression"), (0x1000, "dirdata"), (0x80000000, "0x80000000")]
)
def test_a_feature_that_cannot_be_read_is_refused_by_name(
    bit: int, name: str, tree: Path, tmp_path: Path
) -> None:
    data = bytearray(build(tree, tmp_path / "image", "-O", "^metadata_csum"))
    place = slice(1024 + 0x60, 1024 + 0x64)
    data[place] = (int.from_bytes(data[place], "little") | bit).to_bytes(4, "little")
    with pytest.raises(ImageError, match=f"feature {name}$") as caught:
        open_bytes(bytes(data))
    assert caught.value.code == "ext4-unsupported"


def test_an_encrypted_file_is_refused_and_others_are_read(tree: Path, tmp_path: Path) -> None:
    data = build(tree, tmp_path / "image", "-O", "encrypt", debugfs=["sif /empty flags 0x80800"])
    volume = open_bytes(data)
    assert code_of(volume, "/empty") == "ext4-unsupported"
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG


def test_another_case_in_a_folding_directory_is_refused(tree: Path, tmp_path: Path) -> None:
    commands = ["sif /opt flags 0x40080000"]
    volume = open_bytes(build(tree, tmp_path / "image", "-O", "casefold", debugfs=commands))
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG
    assert code_of(volume, "/opt/INNER.balenaos-img") == "ext4-unsupported"


@pytest.mark.parametrize(
    "features",
    [
        "meta_bg,^resize_inode",
        "meta_bg,^resize_inode,^64bit,^flex_bg",
        "meta_bg,^resize_inode,sparse_super2,^flex_bg",
        "^metadata_csum,uninit_bg,^flex_bg",
        "^metadata_csum,^sparse_super,^resize_inode,^flex_bg",
        "sparse_super2,resize_inode",
    ],
)
def test_free_blocks_are_those_of_dumpe2fs(features: str, tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image", "-O", features, "-g", "256"))
    assert list(volume.free_extents()) == ext4_trees.free_by_dumpe2fs(tmp_path / "image")
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG


def test_free_blocks_belong_to_nobody(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image", "-g", "1024"))
    free = [block for e in volume.free_extents() for block in range(e.start >> 10, e.end >> 10)]
    assert len(free) * KIB == volume.free_bytes
    answer = run_debugfs(tmp_path / "image", f"icheck {' '.join(map(str, free[::50]))}")
    assert answer.count("<block not found>") == len(free[::50])


@pytest.mark.parametrize("checksum", ["metadata_csum", "^metadata_csum"])
def test_of_a_group_with_a_damaged_bitmap_nothing_is_free(
    checksum: str, tree: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    data = bytearray(build(tree, image, "-O", f"{checksum},^flex_bg", "-g", "2048"))
    sound = open_bytes(bytes(data))
    used = int(run_debugfs(image, "blocks /opt/inner.balenaos-img").split()[-1])
    number = (used - 1) // 2048
    group = Extent((1 + 2048 * number) * 1024, (1 + 2048 * (number + 1)) * 1024)
    behind = Extent(group.end, SIZE)
    listing = subprocess.check_output(["dumpe2fs", str(image)], text=True)
    bitmap = 1024 * int(re.findall(r"Block bitmap at (\d+)", listing)[number])
    free = next(sound.free_extents(group)).start // 1024
    flipped = [used]  # the number of free blocks is then wrong
    if checksum == "metadata_csum":
        flipped.append(free)  # and now right again
    for block in flipped:
        byte, bit = divmod(block - 1 - 2048 * number, 8)
        data[bitmap + byte] ^= 1 << bit
    damaged = open_bytes(bytes(data))
    assert list(damaged.free_extents(group)) == []
    assert list(damaged.free_extents(behind)) == list(sound.free_extents(behind)) != []


@pytest.mark.parametrize("bit", [0x4000, 0x80000000])  # shared_blocks, and an unknown one
def test_with_a_feature_that_may_change_bitmaps_nothing_is_free(
    bit: int, tree: Path, tmp_path: Path
) -> None:
    data = bytearray(build(tree, tmp_path / "image", "-O", "^metadata_csum"))
    place = slice(1024 + 0x64, 1024 + 0x68)
    data[place] = (int.from_bytes(data[place], "little") | bit).to_bytes(4, "little")
    volume = open_bytes(bytes(data))
    assert volume.read_file("/opt/inner.balenaos-img", SIZE) == BIG
    assert list(volume.free_extents()) == []


def test_with_a_damaged_group_descriptor_nothing_is_free(tree: Path, tmp_path: Path) -> None:
    data = bytearray(build(tree, tmp_path / "image", "-g", "2048"))
    data[2 * 1024 + 3 * 64 + 8] ^= 1  # the inode table of group 3
    assert list(open_bytes(bytes(data)).free_extents()) == []


def test_bitmaps_are_read_only_where_they_are_asked_for(tree: Path, tmp_path: Path) -> None:
    data = build(tree, tmp_path / "image", "-O", "^flex_bg,^resize_inode", "-g", "2048")
    group = 2048 * 1024
    source = MemorySource(data, broken_at=3 * group)
    volume = Ext4Volume.open(source, Extent(0, SIZE))
    within = Extent(group + 1024, 2 * group + 1024)
    assert list(volume.free_extents(within)) == list(open_bytes(data).free_extents(within)) != []
    with pytest.raises(ImageError, match="cannot be read"):
        list(volume.free_extents())


class NotedSource(MemorySource):
    """Knows whether it was told that reads ascend."""

    told = False

    def sequential(self) -> AbstractContextManager[None]:
        return self._note()

    @contextmanager
    def _note(self) -> Iterator[None]:
        self.told = True
        yield


@pytest.mark.parametrize("swapped", [False, True])
def test_a_file_ascends_only_if_its_blocks_do(
    swapped: bool,  # noqa: FBT001 -- a case of the test
    tree: Path,
    tmp_path: Path,
) -> None:
    data = bytearray(build(tree, tmp_path / "image", "-t", "ext2"))
    place = run_debugfs(tmp_path / "image", "imap /opt/inner.balenaos-img").split()
    pointers = int(place[-3].rstrip(",")) * 1024 + int(place[-1], 16) + 40
    expected = BIG
    if swapped:
        first, second = data[pointers : pointers + 4], data[pointers + 4 : pointers + 8]
        data[pointers : pointers + 8] = second + first
        expected = BIG[1024:2048] + BIG[:1024] + BIG[2048:]
    source = NotedSource(bytes(data))
    volume = Ext4Volume.open(source, Extent(0, SIZE))
    entry = volume.find("/opt/inner.balenaos-img")
    assert entry is not None
    file = Ext4File(volume, entry, "the inner image")
    with file.sequential():
        assert file.read(0, file.size) == expected
    assert source.told is not swapped


def test_a_file_is_a_source_of_its_own(tree: Path, tmp_path: Path) -> None:
    volume = open_bytes(build(tree, tmp_path / "image"))
    entry = volume.find("/opt/inner.balenaos-img")
    assert entry is not None
    file = Ext4File(volume, entry, "the inner image")
    assert (file.name, file.size, file.measure(), file.seekable) == (
        "the inner image",
        len(BIG),
        len(BIG),
        True,
    )
    assert file.read(1000, 5000) == BIG[1000:6000]
    assert file.read(len(BIG), 0) == b""
    buffer = bytearray(3000)
    file.readinto(len(BIG) - 3000, memoryview(buffer))
    assert buffer == BIG[-3000:]
    for offset, length in ((0, len(BIG) + 1), (-1, 1), (len(BIG), 1)):
        with pytest.raises(ImageError, match=f"the inner image: ends at byte {len(BIG)}"):
            file.read(offset, length)


def test_holes_and_space_never_written_are_told(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(100 * KIB + 1)
        sparse.seek(40 * KIB)
        sparse.write(b"\xaa" * 8 * KIB)
    data = build(root, tmp_path / "image", debugfs=["fallocate /sparse 60 69"])
    volume = open_bytes(data)
    entry = volume.find("/sparse")
    assert entry is not None
    file = Ext4File(volume, entry, "sparse")
    pieces = [(piece, place is not None) for piece, place in file.runs()]
    assert pieces == [
        (Extent(0, 40 * KIB), False),
        (Extent(40 * KIB, 48 * KIB), True),
        (Extent(48 * KIB, 100 * KIB + 1), False),
    ]
    assert file.read(0, file.size) == (root / "sparse").read_bytes()
    (place,) = [place for _piece, place in file.runs() if place is not None]
    assert data[place.start : place.end] == b"\xaa" * 8 * KIB


def test_the_longest_extent_is_one_with_content(tmp_path: Path) -> None:
    """32768 blocks: one more in the field would mean an extent never written.

    mkfs writes extents of 32767 blocks at most, the kernel writes these.
    """
    root, image = tmp_path / "tree", tmp_path / "image"
    root.mkdir()
    (root / "file").write_bytes(BIG)
    arguments = ["-b", "1024", "-O", "^metadata_csum,^has_journal", "-d", str(root)]
    ext4_trees.make(image, arguments, size=40 * MIB)
    place = run_debugfs(image, "imap /file").split()
    data = bytearray(image.read_bytes())
    inode = int(place[-3].rstrip(",")) * 1024 + int(place[-1], 16)
    data[inode + 4 : inode + 8] = (32 * MIB).to_bytes(4, "little")
    data[inode + 42 : inode + 44] = (1).to_bytes(2, "little")  # entries
    data[inode + 56 : inode + 58] = (32768).to_bytes(2, "little")  # length of the first
    image.write_bytes(data)
    run_debugfs(image, f"dump /file {tmp_path / 'file'}")
    content = open_bytes(bytes(data)).read_file("/file", 32 * MIB)
    assert content.startswith(BIG)
    assert content == (tmp_path / "file").read_bytes()


def test_a_file_in_many_pieces_is_small_in_memory() -> None:
    count = 100_000
    source = MemorySource(b"")
    tracemalloc.start()
    content = FileMap(source, size=count * 8192, unit=4096, base=0, most=count)
    for number in range(count):
        content.add(number * 2, number * 3 + 7, 1)
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 32 * count
    start = 2 * 77_777 * 4096
    place = (77_777 * 3 + 7) * 4096
    assert list(content.runs(start + 10, start + 20)) == [
        (Extent(start + 10, start + 20), Extent(place + 10, place + 20))
    ]
    with pytest.raises(ImageError, match="in more than 100000 pieces"):
        content.add(count * 2 - 1, 1, 1)
