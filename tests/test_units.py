"""Byte ranges, and sizes as people write them."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.units import KIB, Extent, align_down, align_up, is_zero, merge, parse_size


@pytest.mark.parametrize(
    "text", ["0", "1", "512", "3K", "3KiB", "3KB", "7M", "7MiB", "7MB", "2G", "2GiB", "2GB", "1T"]
)
def test_a_size_means_what_it_means_to_truncate(text: str, tmp_path: Path) -> None:
    # truncate(1) of coreutils, whose units are those of util-linux.
    path = tmp_path / "file"
    subprocess.run(["truncate", "--size", text, path], check=True)
    assert parse_size(text) == path.stat().st_size


@pytest.mark.parametrize(
    ("text", "same"), [("256g", "256G"), (" 256 GiB ", "256G"), ("5 mb", "5MB"), ("12B", "12")]
)
def test_case_and_white_space_do_not_matter(text: str, same: str) -> None:
    assert parse_size(text) == parse_size(same)


@pytest.mark.parametrize(
    "text", ["", " ", "G", "-1", "+1", "1.5G", "1e9", "0x10", "1Gi", "1 2", "\u0661"]
)
def test_what_is_no_size_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


extents = st.builds(lambda start, size: Extent(start, start + size), *[st.integers(0, 60)] * 2)


def bytes_of(extent: Extent | None) -> set[int]:
    return set() if extent is None else set(range(extent.start, extent.end))


@given(one=extents, other=extents)
def test_an_intersection_holds_the_bytes_of_both(one: Extent, other: Extent) -> None:
    common = one.intersection(other)
    assert bytes_of(common) == bytes_of(one) & bytes_of(other)
    assert (common is not None) == one.overlaps(other)


@given(extent=extents, size=st.integers(1, 20))
def test_the_pieces_of_a_range_are_its_bytes_and_meet_at_multiples(
    extent: Extent, size: int
) -> None:
    pieces = list(extent.cut(size))
    assert [byte for piece in pieces for byte in sorted(bytes_of(piece))] == sorted(
        bytes_of(extent)
    )
    assert all(before.end == after.start for before, after in pairwise(pieces))
    assert all(piece.end % size == 0 for piece in pieces[:-1])
    assert all(0 < piece.size <= size for piece in pieces)


@given(extent=extents, size=st.integers(1, 20))
def test_the_whole_blocks_of_a_range_are_those_with_every_byte_in_it(
    extent: Extent, size: int
) -> None:
    blocks = [Extent(start, start + size) for start in range(0, 140, size)]
    inside = [block for block in blocks if extent.encloses(block)]
    expected = {byte for block in inside for byte in bytes_of(block)}
    assert bytes_of(extent.whole_blocks(size)) == expected


@given(found=st.lists(extents.filter(bytes_of)), gap=st.integers(0, 5))
def test_merged_ranges_hold_the_same_bytes_and_the_gaps_between(
    found: list[Extent], gap: int
) -> None:
    merged = list(merge(sorted(found), gap=gap))
    expected = set().union(*map(bytes_of, found))
    for before, after in pairwise(sorted(expected)):
        if after - before - 1 <= gap:
            expected |= bytes_of(Extent(before, after))
    assert set().union(*map(bytes_of, merged)) == expected
    assert all(after.start - before.end > gap for before, after in pairwise(merged))


def test_ranges_are_merged_in_the_order_they_come() -> None:
    chain = [Extent(8, 12), Extent(12, 16), Extent(4, 8), Extent(16, 20)]
    assert list(merge(chain)) == [Extent(8, 16), Extent(4, 8), Extent(16, 20)]


@given(offset=st.integers(0, 1000), unit=st.integers(1, 50))
def test_an_offset_is_aligned_to_the_nearest_multiple_on_its_side(offset: int, unit: int) -> None:
    multiples = range(0, 1051, unit)
    assert align_down(offset, unit) == max(each for each in multiples if each <= offset)
    assert align_up(offset, unit) == min(each for each in multiples if each >= offset)


@given(
    size=st.integers(0, 3 * 64 * KIB), marked=st.sets(st.integers(0, 3 * 64 * KIB - 1), max_size=2)
)
def test_bytes_are_zero_if_each_is(size: int, marked: set[int]) -> None:
    content = bytearray(size)
    for offset in marked & set(range(size)):
        content[offset] = 1
    assert is_zero(memoryview(content)) is not any(content)
