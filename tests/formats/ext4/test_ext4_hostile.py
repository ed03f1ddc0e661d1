"""Ext4 filesystems made to do harm: every outcome is content or an ImageError, and soon."""

import random
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import pytest
from fakes import MemorySource
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import EntryKind, Ext4Entry, Ext4File, Ext4Volume
from balenaflash.units import Extent

pytestmark = pytest.mark.needs("e2fsprogs")

SECONDS = 30
KINDS = {
    "plain": ["-O", "^metadata_csum,inline_data", "-I", "256"],
    "checked": ["-O", "metadata_csum,inline_data", "-I", "256"],
    "ext2": ["-t", "ext2", "-I", "128"],
    "uninit": ["-O", "^metadata_csum,uninit_bg,^flex_bg", "-g", "512"],
}
SIZE = 4 << 20
BLOCK = 1024
MANY_EXTENTS = 400
FILES = {
    "/etc/os-release": b"ID=balena-os\n" * 3,
    "/big": bytes(range(256)) * 600,
    "/inside": b"in its inode" * 9,
    "/tiny": b"t",
}
SB = 1024  # offset of the superblock


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """End a test that hangs."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@cache
def filesystem(kind: str) -> bytes:
    """A small filesystem with files, links, directories, and a file in 400 pieces."""
    with TemporaryDirectory() as directory:
        tree, image = Path(directory, "tree"), Path(directory, "image")
        for path, content in FILES.items():
            place = tree / path[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        (tree / "many").mkdir()
        for number in range(60):
            (tree / "many" / f"name {number}").touch()
        (tree / "link").symlink_to("etc/os-release")
        (tree / "long").symlink_to("/" * 100 + "tiny")
        (tree / "loop").symlink_to("loop")
        with (tree / "pieces").open("wb") as pieces:
            for number in range(MANY_EXTENTS):
                pieces.seek(number * 2 * BLOCK)
                pieces.write(bytes([number % 255 + 1]) * BLOCK)
        command = ["mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-J", "size=1", *KINDS[kind]]
        if kind == "ext2":
            del command[5:7]
        subprocess.run(
            [*command, "-d", tree, image, str(SIZE // BLOCK)], check=True, capture_output=True
        )
        return image.read_bytes()


def open_bytes(data: bytes) -> Ext4Volume:
    return Ext4Volume.open(MemorySource(data), Extent(0, len(data)))


def read_all(volume: Ext4Volume) -> dict[str, bytes]:
    """Everything that can be had; what is refused is left out."""
    contents: dict[str, bytes] = {}
    for path in (*FILES, "/link", "/long", "/loop", "/many/name 7", "/many/none"):
        with suppress(ImageError):
            volume.find(path)
    with suppress(ImageError):
        for entry in volume.walk():
            with suppress(ImageError):
                contents[entry.path] = read_entry(volume, entry)
    with suppress(ImageError):
        volume.list("/many")
    with suppress(ImageError):
        check_free(volume)
    return contents


def read_entry(volume: Ext4Volume, entry: Ext4Entry) -> bytes:
    if entry.kind is EntryKind.SYMLINK:
        return volume.read_link(entry).encode("utf-8", "surrogateescape")
    if entry.kind is not EntryKind.FILE:
        return b""
    runs = Ext4File(volume, entry, "file").runs()
    position = 0
    for _count, (piece, place) in zip(range(10_000), runs, strict=False):
        assert piece.start == position < piece.end
        assert place is None or 0 < place.start < place.end <= volume.total_bytes
        position = piece.end
    return volume.read_file(entry, limit=SIZE)


def check_free(volume: Ext4Volume) -> None:
    end = 0
    for extent in volume.free_extents():
        assert end <= extent.start < extent.end <= volume.total_bytes
        end = extent.end


def use(data: bytes) -> dict[str, bytes]:
    try:
        volume = open_bytes(data)
    except ImageError as error:
        str(error).encode()  # can be shown
        return {}
    return read_all(volume)


def with_bytes(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def used_blocks(data: bytes) -> list[int]:
    """Blocks that are not all zero, superblock and group descriptors more than once."""
    used = [block for block in range(1, SIZE // BLOCK) if any(block_of(data, block))]
    return [1, 2, 1, 2, *used]


def block_of(data: bytes, block: int) -> bytes:
    return data[block * BLOCK : (block + 1) * BLOCK]


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_filesystem_is_read_whole(kind: str) -> None:
    contents = use(filesystem(kind))
    assert FILES.items() <= contents.items()
    assert contents["/link"] == b"etc/os-release"
    assert len(contents) > 60


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_spoiled_bytes_are_survived(kind: str, data: st.DataObject) -> None:
    image = filesystem(kind)
    blocks = used_blocks(image)
    for _ in range(data.draw(st.integers(1, 8))):
        block = data.draw(st.sampled_from(blocks))
        offset = block * BLOCK + data.draw(st.integers(0, BLOCK - 4))
        value = data.draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4]))
        image = with_bytes(image, offset, value)
    use(image)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_metadata_never_changes_what_is_read(data: st.DataObject) -> None:
    image = filesystem("checked")
    sound = use(image)
    blocks = [block for block in used_blocks(image) if not is_content(image, block)]
    offset = data.draw(st.sampled_from(blocks)) * BLOCK + data.draw(st.integers(0, BLOCK - 1))
    flipped = bytes([image[offset] ^ 1 << data.draw(st.integers(0, 7))])
    try:
        volume = open_bytes(with_bytes(image, offset, flipped))
    except ImageError:
        return
    contents = read_all(volume)
    assert contents.items() <= sound.items()
    free = set(open_bytes(image).free_extents())
    assert all(any(whole.encloses(part) for whole in free) for part in volume.free_extents())


def is_content(image: bytes, block: int) -> bool:
    """Whether a block belongs to a file or link, whose bytes nothing protects."""
    return block in content_blocks(image)


@cache
def content_blocks(image: bytes) -> frozenset[int]:
    blocks: set[int] = set()
    for name in (*FILES, "/pieces", "/long"):
        blocks.update(blocks_of(image, name))
    # debugfs counts the nodes of the extent tree too; those are protected.
    magic = b"\x0a\xf3"
    return frozenset(b for b in blocks if block_of(image, b)[:2] != magic)


@pytest.mark.parametrize(
    ("offset", "form"),
    [
        (0x00, "I"),  # s_inodes_count
        (0x04, "I"),  # s_blocks_count_lo
        (0x14, "I"),  # s_first_data_block
        (0x18, "I"),  # s_log_block_size
        (0x20, "I"),  # s_blocks_per_group
        (0x28, "I"),  # s_inodes_per_group
        (0x4C, "I"),  # s_rev_level
        (0x54, "I"),  # s_first_ino
        (0x58, "H"),  # s_inode_size
        (0x5C, "I"),  # s_feature_compat
        (0x60, "I"),  # s_feature_incompat
        (0x64, "I"),  # s_feature_ro_compat
        (0xCE, "H"),  # s_reserved_gdt_blocks
        (0xFE, "H"),  # s_desc_size
        (0x104, "I"),  # s_first_meta_bg
        (0x150, "I"),  # s_blocks_count_hi
    ],
)
def test_no_field_of_the_superblock_is_trusted(offset: int, form: str) -> None:
    image = filesystem("uninit")
    size = struct.calcsize(form)
    (stored,) = struct.unpack_from(f"<{form}", image, SB + offset)
    flips = [stored ^ 1 << bit for bit in range(0, 8 * size, 2)]
    for value in {0, 1, stored - 1, stored + 1, 256**size - 1, 1 << 8 * size - 1, *flips}:
        new = (value % 256**size).to_bytes(size, "little")
        use(with_bytes(image, SB + offset, new))


def inode_offset(image: bytes, path: str) -> int:
    """Where debugfs finds the inode of ``path``, in bytes from the start."""
    with TemporaryDirectory() as directory:
        file = Path(directory, "image")
        file.write_bytes(image)
        run = subprocess.run(
            ["debugfs", "-R", f'imap "{path}"', file], capture_output=True, text=True, check=True
        )
    block, offset = run.stdout.split("located at block ")[1].split(", offset ")
    return int(block) * BLOCK + int(offset, 16)


def blocks_of(image: bytes, path: str) -> list[int]:
    """The blocks that debugfs counts for ``path``, those of pointers and extents too."""
    with TemporaryDirectory() as directory:
        file = Path(directory, "image")
        file.write_bytes(image)
        run = subprocess.run(
            ["debugfs", "-R", f"blocks {path}", file], capture_output=True, text=True, check=True
        )
    return [int(number) for number in run.stdout.split()]


def refused(image: bytes, path: str) -> str:
    with pytest.raises(ImageError) as caught:
        open_bytes(image).read_file(path, limit=SIZE)
    return str(caught.value)


@pytest.mark.parametrize("structure", ["superblock", "inode", "extents", "directory"])
def test_a_wrong_checksum_is_told(structure: str) -> None:
    image = filesystem("checked")
    nodes = [n for n in blocks_of(image, "/pieces") if block_of(image, n)[:2] == b"\x0a\xf3"]
    offset = {
        "superblock": SB + 0x300,  # s_mount_opts and on, unused
        "inode": inode_offset(image, "/many/name 7") + 0x10,  # i_mtime
        "extents": nodes[-1] * BLOCK + 12 + 8,  # where the first extent starts
        "directory": blocks_of(image, "/many")[0] * BLOCK + 24 + 8,  # a letter of a name
    }[structure]
    read_strictly(image)
    spoiled = with_bytes(image, offset, bytes([image[offset] ^ 1]))
    with pytest.raises(ImageError, match="checksum"):
        read_strictly(spoiled)


def read_strictly(image: bytes) -> None:
    volume = open_bytes(image)
    volume.list("/many")
    volume.read_file("/pieces", limit=SIZE)


def test_an_extent_tree_that_contains_itself_is_refused() -> None:
    image = filesystem("plain")
    inode = inode_offset(image, "/pieces")
    node = struct.unpack_from("<I", image, inode + 40 + 12 + 4)[0]
    header = struct.pack("<HHHHI", 0xF30A, 1, 84, 1, 0)
    entry = struct.pack("<IIHH", 0, node, 0, 0)
    image = with_bytes(image, inode + 40 + 6, struct.pack("<H", 2))  # the root claims depth 2
    image = with_bytes(image, node * BLOCK, header + entry)
    assert "reached twice" in refused(image, "/pieces")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (6, 0xFFFF, "a depth of 65535"),
        (6, 4, "an invalid node"),
        (2, 0xFFFF, "an invalid node"),
        (0, 0, "an invalid node"),
    ],
)
def test_a_false_header_of_an_extent_tree_is_refused(field: int, value: int, said: str) -> None:
    image = filesystem("plain")
    place = inode_offset(image, "/pieces") + 40 + field
    assert said in refused(with_bytes(image, place, struct.pack("<H", value)), "/pieces")


def test_content_said_to_lie_outside_of_its_inode_is_refused() -> None:
    image = filesystem("plain")
    inode = inode_offset(image, "/inside")
    attribute = image.index(b"data", inode, inode + 256) - 16
    image = with_bytes(image, inode + 4, struct.pack("<I", BLOCK))  # i_size
    image = with_bytes(image, attribute + 8, struct.pack("<I", BLOCK))  # e_value_size
    assert "outside of itself" in refused(image, "/inside")


@pytest.mark.parametrize(
    ("length", "said"), [(1020 - 24, "cut off"), (4, "wrong length"), (1024, "wrong length")]
)
def test_a_false_length_in_a_directory_is_refused(length: int, said: str) -> None:
    image = filesystem("ext2")
    entry = blocks_of(image, "/many")[0] * BLOCK + 24  # the first behind "." and ".."
    assert said in refused(with_bytes(image, entry + 4, struct.pack("<H", length)), "/many/none")


def test_pointers_that_go_round_are_refused() -> None:
    image = filesystem("ext2")
    inode = inode_offset(image, "/pieces")
    double = struct.unpack_from("<I", image, inode + 40 + 13 * 4)[0]
    looped = with_bytes(image, double * BLOCK, struct.pack("<I", double) * (BLOCK // 4))
    assert "reached twice" in refused(looped, "/pieces")


def test_a_directory_inside_itself_is_refused() -> None:
    image = filesystem("ext2")
    with TemporaryDirectory() as directory:
        path = Path(directory, "image")
        path.write_bytes(image)
        subprocess.run(
            ["debugfs", "-w", "-R", "ln /etc /etc/again", path], check=True, capture_output=True
        )
        volume = open_bytes(path.read_bytes())
    with pytest.raises(ImageError, match="inside itself"):
        list(volume.walk())
    assert volume.find("/etc/again/again/os-release") is not None


@pytest.mark.parametrize("size", [1 << 40, 1 << 63, (1 << 64) - 1])
def test_an_absurd_size_takes_no_memory(size: int) -> None:
    image = filesystem("plain")
    place = inode_offset(image, "/big")
    image = with_bytes(image, place + 4, struct.pack("<I", size & 0xFFFFFFFF))
    image = with_bytes(image, place + 0x6C, struct.pack("<I", size >> 32))
    assert "bytes" in refused(image, "/big")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_cut_anywhere_is_survived(kind: str) -> None:
    image = filesystem(kind)
    chance = random.Random(kind)  # noqa: S311 -- to be the same each time
    for _ in range(20):
        cut = chance.randrange(len(image))
        source = MemorySource(image[:cut])
        try:
            volume = Ext4Volume.open(source, Extent(0, len(image)))
        except ImageError:
            continue
        read_all(volume)
