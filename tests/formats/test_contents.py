from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.formats.contents import BLOCK_SIZE, Content, Run, classify
from balenaflash.units import MIB, Extent


@st.composite
def images(draw: st.DrawFn) -> tuple[bytes, int, list[Extent]]:
    """Some bytes of an image, their offset, and free ranges around and in them."""
    pieces = draw(
        st.lists(
            st.tuples(
                st.integers(1, 3 * BLOCK_SIZE)
                | st.sampled_from([BLOCK_SIZE, 16 * BLOCK_SIZE, 17 * BLOCK_SIZE, 40 * BLOCK_SIZE]),
                st.sampled_from([b"\0", b"\0", b"x"]),
            ),
            max_size=8,
        )
    )
    buffer = b"".join(byte * length for length, byte in pieces)
    offset = draw(st.sampled_from([0, BLOCK_SIZE, 16 * BLOCK_SIZE, 64 * MIB]) | st.integers(0, MIB))
    free = []
    position = max(0, offset - 2 * BLOCK_SIZE)
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 40_000), st.integers(1, 40_000)))):
        start = position + gap
        position = start + length
        free.append(Extent(start, position))
    return buffer, offset, free


def blocks_of(buffer: bytes, offset: int) -> list[Extent]:
    """The blocks that ``buffer`` has a part of, cut to it."""
    end = offset + len(buffer)
    first, last = offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)
    return [
        Extent(max(number * BLOCK_SIZE, offset), min((number + 1) * BLOCK_SIZE, end))
        for number in range(first, last)
        if len(buffer)
    ]


def expected_content(buffer: bytes, offset: int, free: list[Extent], block: Extent) -> Content:
    """Byte by byte, as the definition says it."""
    is_whole = block.size == BLOCK_SIZE and block.start % BLOCK_SIZE == 0
    if is_whole and any(each.encloses(block) for each in free):
        return Content.FREE
    content = buffer[block.start - offset : block.end - offset]
    return Content.DATA if any(content) else Content.ZERO


@settings(max_examples=300)
@given(case=images())
def test_each_block_is_what_the_definition_says(case: tuple[bytes, int, list[Extent]]) -> None:
    buffer, offset, free = case
    runs = classify(memoryview(buffer), offset, free)
    position = offset
    for run in runs:
        assert run.extent.start == position
        assert run.extent.size > 0
        position = run.extent.end
    assert position == offset + len(buffer)
    assert all(one.content is not other.content for one, other in pairwise(runs))
    for block in blocks_of(buffer, offset):
        (holder,) = (run for run in runs if run.extent.encloses(block))
        assert holder.content is expected_content(buffer, offset, free, block)


@settings(max_examples=150)
@given(case=images())
def test_no_byte_that_matters_is_outside_data_and_no_zero_is_anything_else(
    case: tuple[bytes, int, list[Extent]],
) -> None:
    buffer, offset, free = case
    runs = classify(memoryview(buffer), offset, free)
    restored = bytearray(b"\xff" * len(buffer))
    for run in runs:
        start, end = run.extent.start - offset, run.extent.end - offset
        if run.content is Content.DATA:
            restored[start:end] = buffer[start:end]
        elif run.content is Content.ZERO:
            restored[start:end] = bytes(end - start)
    for block in blocks_of(buffer, offset):
        start, end = block.start - offset, block.end - offset
        is_free = any(each.encloses(block) for each in free)
        assert restored[start:end] == buffer[start:end] or is_free


@settings(max_examples=150)
@given(case=images(), cut=st.integers(0, 200))
def test_it_does_not_matter_how_an_image_is_cut_into_buffers(
    case: tuple[bytes, int, list[Extent]], cut: int
) -> None:
    buffer, offset, free = case
    at = min(max(0, cut * BLOCK_SIZE - offset % BLOCK_SIZE), len(buffer))
    view = memoryview(buffer)
    halves = classify(view[:at], offset, free) + classify(view[at:], offset + at, free)
    assert merged(halves) == classify(view, offset, free)


@settings(max_examples=150)
@given(case=images())
def test_the_bytes_of_a_run_are_of_the_kind_of_the_run(
    case: tuple[bytes, int, list[Extent]],
) -> None:
    buffer, offset, free = case
    for run in classify(memoryview(buffer), offset, free):
        piece = memoryview(buffer)[run.extent.start - offset : run.extent.end - offset]
        assert classify(piece, run.extent.start, free) == (run,)


def merged(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    result: list[Run] = []
    for run in runs:
        if result and result[-1].content is run.content:
            last = result.pop()
            result.append(Run(Extent(last.extent.start, run.extent.end), run.content))
        else:
            result.append(run)
    return tuple(result)


@pytest.mark.parametrize("buffer", [bytearray(MIB), memoryview(bytes(MIB))])
def test_any_buffer_will_do(buffer: bytearray | memoryview) -> None:
    assert classify(memoryview(buffer), 0, []) == (Run(Extent(0, MIB), Content.ZERO),)


def test_one_byte_at_either_end_of_a_block_makes_it_data() -> None:
    content = bytearray(3 * BLOCK_SIZE)
    content[0] = content[2 * BLOCK_SIZE - 1] = 1
    assert [run.content for run in classify(memoryview(content), 0, [])] == [
        Content.DATA,
        Content.ZERO,
    ]
