import os
import subprocess
from pathlib import Path

import pytest
from bmaptool import BLOCK, bmaptool, needs_bmaptool, small_image, sparse_image
from builders import Layout
from imagecopies import MakeImage

from balenaflash.source.base import open_source
from balenaflash.source.block_map import Bmap, MappedRange, differing_ranges, serialise
from balenaflash.source.layers import Patch
from balenaflash.source.map_beside import find_beside, plan_updates, read_bmap

FOREIGN = serialise(Bmap(40960, BLOCK, (MappedRange(1, 2, "a" * 64),)))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_image(tmp_path)


def edit(image: Path, *patches: Patch) -> tuple[str, ...]:
    """Change ``image`` the way an edit does, and its block maps with it."""
    with open_source(image) as source:
        updates = plan_updates(image, source, patches)
    with image.open("r+b") as file:
        for patch in patches:
            file.seek(patch.offset)
            file.write(patch.data)
    return tuple(warning for update in updates for warning in update.finish())


@needs_bmaptool
@pytest.mark.parametrize("name", ["small.img.bmap", "small.bmap"])
def test_the_map_beside_an_image_follows_an_edit(small: Path, name: str) -> None:
    path = small.with_name("small.img.bmap").rename(small.with_name(name))
    path.chmod(0o640)
    assert edit(small, Patch(5 * BLOCK + 9, b"changed"), Patch(70 * BLOCK - 3, b"new")) == ()
    assert path.stat().st_mode & 0o777 == 0o640
    assert {each.name for each in small.parent.iterdir()} == {name, "small.img"}
    copy = small.with_name("copy")
    bmaptool("copy", small, copy)  # it finds the map by itself
    assert copy.read_bytes() == small.read_bytes()


@needs_bmaptool
def test_the_map_of_a_whole_image_follows_new_files(tmp_path: Path, image: MakeImage) -> None:
    built = image(Layout.GPT_FAT16)
    path = Path(f"{built.path}.bmap")
    bmaptool("create", "-o", path, built.path)
    before = read_bmap(path)
    offset = built.boot_extent.end - 100_000  # free space: not mapped
    assert edit(built.path, Patch(offset, os.urandom(5000))) == ()
    after = read_bmap(path)
    assert 2 <= after.mapped_blocks - before.mapped_blocks <= 3
    with open_source(built.path) as source:
        assert differing_ranges(after, source) == ()
    copy = tmp_path / "copy"
    bmaptool("copy", "--bmap", path, built.path, copy)
    assert subprocess.run(["cmp", copy, built.path], check=False).returncode == 0


@needs_bmaptool
def test_a_link_to_a_map_is_set_aside_and_what_it_leads_to_is_not_touched(small: Path) -> None:
    link = small.with_name("small.img.bmap")
    (small.parent / "of root").mkdir()
    real = link.rename(small.parent / "of root" / "real.bmap")
    link.symlink_to("of root/real.bmap")
    before, status = real.read_bytes(), real.stat()
    (warning,) = edit(small, Patch(0, b"new"))
    assert "is a symbolic link" in warning
    assert warning.endswith("it is now small.img.bmap.stale")
    assert (real.read_bytes(), real.stat()) == (before, status)
    assert str(small.with_name("small.img.bmap.stale").readlink()) == "of root/real.bmap"
    copy = small.with_name("copy")
    bmaptool("copy", "--nobmap", small, copy)
    assert copy.read_bytes() == small.read_bytes()


@needs_bmaptool
def test_a_link_to_the_map_of_the_image_itself_stays(small: Path) -> None:
    image = small.with_name("latest.img")
    image.symlink_to(small.name)
    small.with_name("latest.img.bmap").symlink_to("small.img.bmap")
    assert edit(image, Patch(5 * BLOCK, b"changed")) == ()
    copy = small.with_name("copy")
    bmaptool("copy", image, copy)  # it finds the map by the link
    assert copy.read_bytes() == small.read_bytes()


@needs_bmaptool
def test_the_map_of_an_image_edited_through_a_link_follows(small: Path) -> None:
    (small.parent / "links").mkdir()
    link = small.parent / "links" / "latest.img"
    link.symlink_to(small)
    assert edit(link, Patch(5 * BLOCK, b"changed")) == ()
    copy = small.with_name("copy")
    bmaptool("copy", small, copy)  # it finds the map by itself
    assert copy.read_bytes() == small.read_bytes()


@needs_bmaptool
def test_a_map_beside_a_link_and_one_beside_its_image_both_follow(small: Path) -> None:
    link = small.with_name("latest.img")
    link.symlink_to(small.name)
    of_link, of_image = (small.with_name(f"{each.name}.bmap") for each in (link, small))
    of_link.write_bytes(of_image.read_bytes())
    assert edit(link, Patch(5 * BLOCK, b"changed")) == ()
    with open_source(small) as source:
        for path in (of_link, of_image):
            assert differing_ranges(read_bmap(path), source) == ()


@needs_bmaptool
def test_a_map_that_was_stale_before_the_edit_is_set_aside(small: Path) -> None:
    with small.open("r+b") as file:
        file.seek(4 * BLOCK)
        file.write(b"by another tool")
    (warning,) = edit(small, Patch(5 * BLOCK, b"new"))
    assert "was not true of the image before the edit either" in warning
    assert not small.with_name("small.img.bmap").exists()
    assert small.with_name("small.img.bmap.stale").exists()


@needs_bmaptool
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a valid block map"),
        (b"-----BEGIN PGP SIGNED MESSAGE-----\n", "not a valid block map"),
        (FOREIGN, "of an image of 40960 bytes"),
    ],
)
def test_a_map_that_cannot_be_kept_is_set_aside_with_a_word(
    small: Path, content: bytes, reason: str
) -> None:
    path = small.with_name("small.img.bmap")
    path.write_bytes(content)
    (warning,) = edit(small, Patch(0, b"new"))
    assert reason in warning
    assert warning.endswith("it is now small.img.bmap.stale")
    assert not path.exists()
    assert small.with_name("small.img.bmap.stale").read_bytes() == content


@needs_bmaptool
def test_a_map_that_may_be_another_images_stays_where_it_is(small: Path) -> None:
    path = small.with_name("small.img.bmap").rename(small.with_name("small.bmap"))
    path.write_bytes(FOREIGN)
    (warning,) = edit(small, Patch(0, b"new"))
    assert "of an image of 40960 bytes" in warning
    assert path.read_bytes() == FOREIGN


@needs_bmaptool
def test_the_signature_of_a_changed_map_is_named(small: Path) -> None:
    small.with_name("small.img.bmap.asc").write_bytes(b"signature")
    (warning,) = edit(small, Patch(0, b"new"))
    assert "small.img.bmap.asc" in warning
    assert "no longer verifies" in warning


def test_without_a_map_there_is_nothing_to_do(tmp_path: Path) -> None:
    path = sparse_image(tmp_path / "x.img", BLOCK, [])
    assert find_beside(path) is None
    assert edit(path, Patch(0, b"new")) == ()
    assert [each.name for each in tmp_path.iterdir()] == ["x.img"]


@needs_bmaptool
def test_nothing_changes_before_the_edit_is_made(small: Path) -> None:
    path = small.with_name("small.img.bmap")
    before = path.read_bytes()
    with open_source(small) as source:
        (update,) = plan_updates(small, source, [Patch(0, b"new")])
    assert path.read_bytes() == before
    assert update.content != before
