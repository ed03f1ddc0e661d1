from dataclasses import dataclass

import pytest
from fakes import MemorySource
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.formats.fat.window import Window
from balenaflash.units import Extent

IMAGE = bytes(range(256)) * 120
EXTENT = Extent(512, 512 * 50)
SIZE = EXTENT.size


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


WRITES = st.lists(
    st.builds(
        Write,
        st.integers(0, SIZE - 1),
        st.one_of(
            st.binary(max_size=40),
            st.integers(0, SIZE).map(lambda length: IMAGE[:length]),
        ),
    ).filter(lambda write: write.offset + len(write.data) <= SIZE),
    max_size=8,
)


def write_in_vain(window: Window, writes: list[Write]) -> None:
    with window.transaction():
        for write in writes:
            window.write_at(write.offset, write.data)
        raise KeyError


def window_and_bytes() -> tuple[Window, bytearray]:
    return Window(MemorySource(IMAGE), EXTENT), bytearray(IMAGE[EXTENT.start : EXTENT.end])


@given(writes=WRITES, data=st.data())
def test_a_window_reads_as_a_copy_that_was_written_to(
    writes: list[Write], data: st.DataObject
) -> None:
    window, expected = window_and_bytes()
    for write in writes:
        window.write_at(write.offset, write.data)
        expected[write.offset : write.offset + len(write.data)] = write.data
    start = data.draw(st.integers(0, SIZE))
    length = data.draw(st.integers(0, SIZE - start))
    assert window.read_at(start, length) == expected[start : start + length]
    assert window.read_at(0, SIZE) == expected


@given(writes=WRITES)
def test_the_changed_runs_make_the_old_bytes_the_new_ones(writes: list[Write]) -> None:
    window, expected = window_and_bytes()
    result = bytearray(expected)
    original = bytes(expected)
    for write in writes:
        window.write_at(write.offset, write.data)
        expected[write.offset : write.offset + len(write.data)] = write.data
    end = -1
    for offset, run in window.changed_runs():
        assert offset > end, "runs that touch are one run"
        assert offset % 512 == 0
        assert all(
            run[at : at + 512] != original[offset + at : offset + at + 512]
            for at in range(0, len(run), 512)
        ), "a sector that has not changed"
        result[offset : offset + len(run)] = run
        end = offset + len(run)
    assert result == expected


@given(before=WRITES, undone=WRITES)
def test_a_transaction_left_by_an_exception_leaves_nothing(
    before: list[Write], undone: list[Write]
) -> None:
    window, expected = window_and_bytes()
    for write in before:
        window.write_at(write.offset, write.data)
        expected[write.offset : write.offset + len(write.data)] = write.data
    runs = list(window.changed_runs())
    with pytest.raises(KeyError):
        write_in_vain(window, undone)
    assert window.read_at(0, SIZE) == expected
    assert list(window.changed_runs()) == runs


def test_what_a_transaction_wrote_stays() -> None:
    window, _ = window_and_bytes()
    with window.transaction():
        window.write_at(700, b"kept")
    assert window.read_at(700, 4) == b"kept"


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (SIZE, 1), (SIZE - 3, 4), (0, SIZE + 1)])
def test_nothing_outside_the_window_is_read_or_written(offset: int, length: int) -> None:
    window, expected = window_and_bytes()
    with pytest.raises(ValueError, match="is not within"):
        window.read_at(offset, length)
    with pytest.raises(ValueError, match="is not within"):
        window.write_at(offset, bytes(length))
    assert window.read_at(0, SIZE) == expected


def test_pages_are_held_only_where_the_content_differs() -> None:
    window, expected = window_and_bytes()
    window.write_at(0, bytes(expected))
    assert window._pages == {}
    window.write_at(5000, b"one page")
    assert len(window._pages) == 1


def test_an_image_that_cannot_be_read_is_told_by_its_source() -> None:
    window = Window(MemorySource(IMAGE, broken_at=2000), EXTENT)
    with pytest.raises(ImageError, match="cannot be read"):
        window.read_at(0, SIZE)
