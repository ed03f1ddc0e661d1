"""Without checksums a block is free only if no inode owns it, whatever the bitmap says."""

import re
from pathlib import Path

import pytest
from builders import run
from ext4_trees import free_by_dumpe2fs
from fakes import MemorySource

from balenaflash.errors import ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.units import MIB, Extent

pytestmark = pytest.mark.needs("e2fsprogs")

SIZE = 8 * MIB


def make(path: Path, *options: str) -> Path:
    """A filesystem with a file, a long link and extended attributes in a block of their own."""
    tree = path.with_name("tree")
    (tree / "directory").mkdir(parents=True)
    (tree / "file").write_bytes(bytes(range(1, 256)) * 514)
    (tree / "directory" / "link").symlink_to("x" * 200)
    run("mke2fs", "-q", "-F", "-b", "1024", "-d", tree, *options, path, str(SIZE // 1024))
    path.with_name("value").write_bytes(b"v" * 500)
    value = path.with_name("value")
    run("debugfs", "-w", "-R", f"ea_set -f {value} /file user.long", path)
    return path


def free_here(path: Path) -> list[Extent]:
    content = path.read_bytes()
    return list(Ext4Volume.open(MemorySource(content), Extent(0, len(content))).free_extents())


def debugfs(path: Path, command: str) -> str:
    return run("debugfs", "-R", command, path)


def swap(path: Path, block: int) -> None:
    """Call ``block`` free and a free one used, so that the counts are right all the same."""
    at = int(debugfs(path, "stats").split("block bitmap at ")[1].split(",")[0]) * 1024
    with path.open("r+b") as file:
        file.seek(at)
        bits = int.from_bytes(file.read(1024), "little")
        assert bits >> block - 1 & 1  # block 1 is the first, with blocks of 1 KiB
        free = next(number for number in range(8000, 0, -1) if not bits >> number - 1 & 1)
        bits ^= 1 << block - 1 | 1 << free - 1
        file.seek(at)
        file.write(bits.to_bytes(1024, "little"))


KINDS = {
    "ext2": ["-t", "ext2"],
    "ext3": ["-t", "ext3"],
    "ext4-gdt-csum": ["-t", "ext4", "-O", "^metadata_csum,uninit_bg"],
    "ext4-no-csum": ["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_sound_one_all_is_free_that_dumpe2fs_calls_so(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path / "fs", *KINDS[kind])
    assert free_here(path) == free_by_dumpe2fs(path)
    assert free_here(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "owner", ["file", "list of blocks", "directory", "link", "attributes", "journal"]
)
def test_a_block_that_something_owns_is_never_free(kind: str, owner: str, tmp_path: Path) -> None:
    path = make(tmp_path / "fs", *KINDS[kind])
    if owner in {"file", "list of blocks"}:
        blocks = [int(word) for word in debugfs(path, "blocks /file").split()]
        said = debugfs(path, "stat /file")
        listed = re.search(r"\((?:IND|ETB\d)\):(\d+)", said)
        if owner == "list of blocks" and listed is None:
            pytest.skip("its extents fit into the inode")
        block = int(listed[1]) if owner != "file" and listed else blocks[len(blocks) // 2]
    elif owner == "attributes":
        block = int(re.findall(r"File ACL: (\d+)", debugfs(path, "stat /file"))[0])
        if not block:
            pytest.skip("its attributes fit into the inode")
    elif owner == "journal":
        if kind == "ext2":
            pytest.skip("ext2 has none")
        block = int(debugfs(path, "blocks <8>").split()[5])
    else:
        name = "/directory" if owner == "directory" else "/directory/link"
        block = int(debugfs(path, f"blocks {name}").split()[0])
    swap(path, block)
    place = Extent((block) * 1024, (block + 1) * 1024)
    assert not any(extent.overlaps(place) for extent in free_here(path))


def test_a_first_meta_group_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """As the image of e2fsprogs' test f_first_meta_bg_too_big has it; dumpe2fs reads it not."""
    path = tmp_path / "fs"
    options = ["-O", "meta_bg,^resize_inode,^metadata_csum", "-b", "1024"]
    run("mke2fs", "-q", "-F", "-t", "ext4", *options, path, str(SIZE // 1024))
    assert free_here(path) == free_by_dumpe2fs(path)
    run("debugfs", "-w", "-R", "ssv first_meta_bg 16777216", path)
    with pytest.raises(AssertionError, match=r"[Cc]orrupt"):
        run("dumpe2fs", path)
    with pytest.raises(ImageError, match="geometry is impossible"):
        free_here(path)
