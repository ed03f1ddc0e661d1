import hashlib
from pathlib import Path

import pytest
from bmaptool import BLOCK, bmaptool, copied_by_bmaptool, needs_bmaptool, small_image
from fakes import MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.base import open_source
from balenaflash.source.block_map import (
    Bmap,
    MappedRange,
    differing_ranges,
    parse,
    serialise,
    updated,
)
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.map_beside import read_bmap
from balenaflash.units import Extent


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_image(tmp_path)


@needs_bmaptool
def test_a_map_by_bmaptool_says_here_what_it_says_there(small: Path) -> None:
    bmap = read_bmap(small.with_name("small.img.bmap"))
    assert (bmap.image_size, bmap.block_size, bmap.blocks) == (100 * BLOCK + 123, BLOCK, 101)
    assert [(mapped.first, mapped.last) for mapped in bmap.ranges] == [(3, 7), (20, 20)]
    content = small.read_bytes()[3 * BLOCK : 8 * BLOCK]
    assert bmap.ranges[0].checksum == hashlib.sha256(content).hexdigest()
    with open_source(small) as source:
        assert differing_ranges(bmap, source) == ()


@needs_bmaptool
def test_a_map_written_here_is_one_that_bmaptool_copies_by(small: Path) -> None:
    path = small.with_name("other.bmap")
    path.write_bytes(serialise(read_bmap(small.with_name("small.img.bmap"))))
    assert copied_by_bmaptool(small, path) == small.read_bytes()


@needs_bmaptool
def test_bmaptool_finds_a_spoiled_byte_by_a_map_written_here(small: Path) -> None:
    path = small.with_name("other.bmap")
    path.write_bytes(serialise(read_bmap(small.with_name("small.img.bmap"))))
    with small.open("r+b") as file:
        file.seek(4 * BLOCK)
        file.write(b"spoiled")
    with pytest.raises(AssertionError, match="checksum mismatch for blocks range 3-7"):
        copied_by_bmaptool(small, path)


@needs_bmaptool
def test_a_map_without_checksums_stays_without(small: Path) -> None:
    path = small.with_name("other.bmap")
    bmaptool("create", "--no-checksum", "-o", path, small)
    bmap = read_bmap(path)
    assert {mapped.checksum for mapped in bmap.ranges} == {None}
    patch = Patch(50 * BLOCK, b"new")
    with open_source(small) as source:
        overlay = Overlay(source, [patch])
        new, untrue = updated(bmap, source, overlay, [patch.extent])
        assert untrue == ()
        after = overlay.read(0, source.size)
    path.write_bytes(serialise(new))
    small.write_bytes(after)
    assert copied_by_bmaptool(small, path) == after


@st.composite
def images_with_maps(draw: st.DrawFn) -> tuple[bytes, Bmap, list[Patch]]:
    """An image that is zero where its map has no block, the map, and patches for it."""
    block_size = draw(st.sampled_from([512, 1024]))
    size = draw(st.integers(1, 24 * block_size))
    count = -(-size // block_size)
    mapped = draw(st.sets(st.integers(0, count - 1)))
    image = bytearray(size)
    ranges = []
    for block in sorted(mapped):
        end = min(size, (block + 1) * block_size)
        image[block * block_size : end] = bytes([block + 1]) * (end - block * block_size)
        digest = hashlib.sha256(image[block * block_size : end]).hexdigest()
        ranges.append(MappedRange(block, block, digest))
    patches: list[Patch] = []
    position = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 3000)))):
        start = position + gap
        position = start + length
        if position > size:
            break
        patches.append(Patch(start, draw(st.sampled_from([b"\0", b"x"])) * length))
    return bytes(image), Bmap(size, block_size, tuple(ranges)), patches


@settings(max_examples=300, deadline=None)
@given(case=images_with_maps())
def test_what_an_updated_map_lists_is_all_that_the_new_image_holds(
    case: tuple[bytes, Bmap, list[Patch]],
) -> None:
    image, bmap, patches = case
    before = MemorySource(image)
    after = Overlay(before, patches)
    new, untrue = updated(bmap, before, after, [patch.extent for patch in patches])
    assert untrue == ()
    content = after.read(0, len(image))
    copied = bytearray(b"\0" * len(image))
    for mapped in new.ranges:
        extent = new.extent_of(mapped)
        copied[extent.start : extent.end] = content[extent.start : extent.end]
        piece = content[extent.start : extent.end]
        assert mapped.checksum == hashlib.sha256(piece).hexdigest()
    assert bytes(copied) == content
    # A block that changed to zeros must be copied too: the target may hold something else there.
    listed = {block for mapped in new.ranges for block in range(mapped.first, mapped.last + 1)}
    for patch in patches:
        assert listed.issuperset(at // bmap.block_size for at in range(*patch_bounds(patch)))
    assert parse(serialise(new), "written") == new


def patch_bounds(patch: Patch) -> tuple[int, int]:
    return patch.offset, patch.offset + len(patch.data)


class CountingSource(MemorySource):
    """Knows which bytes were read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.extents: list[Extent] = []

    def read(self, offset: int, length: int) -> bytes:
        self.extents.append(Extent(offset, offset + length))
        return super().read(offset, length)


def test_only_touched_ranges_are_read() -> None:
    content = bytes(range(256)) * 16 * 100
    ranges = tuple(
        MappedRange(
            first, first + 9, hashlib.sha256(content[first * BLOCK :][: 10 * BLOCK]).hexdigest()
        )
        for first in (0, 20, 60)
    )
    source = CountingSource(content)
    patch = Patch(25 * BLOCK, b"new")
    new, _ = updated(
        Bmap(len(content), BLOCK, ranges), source, Overlay(source, [patch]), [patch.extent]
    )
    assert {(extent.start, extent.end) for extent in source.extents} == {(20 * BLOCK, 30 * BLOCK)}
    assert new.ranges[0] == ranges[0]
    assert new.ranges[2] == ranges[2]


def test_a_map_that_was_not_true_before_is_told() -> None:
    image = b"a" * BLOCK * 4
    digest = hashlib.sha256(image[:BLOCK]).hexdigest()
    bmap = Bmap(len(image), BLOCK, (MappedRange(0, 0, digest),))
    changed_behind_its_back = MemorySource(b"b" + image[1:])
    patch = Patch(100, b"new")
    _, untrue = updated(
        bmap,
        changed_behind_its_back,
        Overlay(changed_behind_its_back, [patch]),
        [patch.extent],
    )
    assert untrue == (Extent(0, BLOCK),)


def test_a_map_of_an_image_of_another_size_is_refused() -> None:
    bmap = Bmap(BLOCK, BLOCK, ())
    with pytest.raises(ImageError, match="of an image of 4096 bytes") as refused:
        differing_ranges(bmap, MemorySource(bytes(8192)))
    assert refused.value.code == "bmap-foreign"
