"""A stream that looks like any other image: whatever is read of it, in whatever order."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balenaflash.errors import ImageError
from balenaflash.source.stream import StreamSource
from balenaflash.source.sums import CheckedDecoder, Sha256Check
from balenaflash.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

CONTENT = random.Random(5).randbytes(200_000) + bytes(150_000) + b"end"  # noqa: S311 - no key


class FakeDecoder:
    """Gives ``content`` in pieces of odd sizes; fails at ``broken_at``."""

    def __init__(self, content: bytes, at: int, broken_at: int | None) -> None:
        self._content = content
        self._position = at
        self._broken_at = broken_at
        self.is_closed = False

    def readinto(self, buffer: memoryview) -> int:
        assert not self.is_closed, "used after it was closed"
        if self._broken_at is not None and self._position >= self._broken_at:
            # What it gave from now on would be nobody's image.
            self._broken_at = None
            raise ImageError("fake: is damaged")
        piece = self._content[self._position :][: min(len(buffer), 7919)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self.is_closed = True


class Opened:
    """A source over fake decoders, and those that it opened."""

    def __init__(
        self,
        *,
        jump: int | None = None,
        is_repeatable: bool = True,
        is_forkable: bool = True,
        size: int | None = None,
        broken_at: int | None = None,
    ) -> None:
        self.decoders: list[FakeDecoder] = []
        self._broken_at = broken_at
        self._starts_anywhere = jump is not None
        self.source = StreamSource(
            "fake",
            self._open,
            size=size,
            jump=jump,
            is_repeatable=is_repeatable,
            is_forkable=is_forkable,
        )

    def _open(self, at: int) -> FakeDecoder:
        assert self._starts_anywhere or at == 0
        self.decoders.append(FakeDecoder(CONTENT, at, self._broken_at))
        return self.decoders[-1]


RANGES = st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 90_000)).map(
    lambda pair: (pair[0], min(pair[1], len(CONTENT) - pair[0]))
)


@given(
    reads=st.lists(
        st.tuples(RANGES, st.sampled_from(["read", "readinto", "passing", "fork", "measure"])),
        max_size=30,
    ),
    jump=st.sampled_from([None, 1, 20_000]),
    size=st.sampled_from([None, len(CONTENT)]),
)
def test_whatever_is_read_in_whatever_order_is_the_content(
    reads: list[tuple[tuple[int, int], str]], jump: int | None, size: int | None
) -> None:
    opened = Opened(jump=jump, size=size)
    source = opened.source
    for (offset, length), how in reads:
        if how == "measure":
            assert source.measure() == len(CONTENT)
            continue
        reader = source.fork() if how == "fork" else source
        assert reader is not None
        if how == "read":
            found = reader.read(offset, length)
        else:
            buffer = bytearray(length)
            with reader.sequential() if how == "passing" else nullcontext():
                reader.readinto(offset, memoryview(buffer))
            found = bytes(buffer)
        assert found == CONTENT[offset : offset + length]
    source.close()
    assert all(decoder.is_closed for decoder in opened.decoders)


@given(
    explored=st.lists(RANGES, max_size=8),
    skipped=st.sets(st.integers(0, 34)),
    odd=st.integers(1, 9),
)
def test_a_stream_that_can_be_read_once_gives_what_was_explored_and_then_all_in_order(
    explored: list[tuple[int, int]], skipped: set[int], odd: int
) -> None:
    opened = Opened(is_repeatable=False, is_forkable=False)
    source = opened.source
    assert source.fork() is None
    for offset, length in explored:
        assert source.read(offset, length) == CONTENT[offset : offset + length]
    with source.sequential():
        for number in range(35):
            start = number * 10_000 + odd
            length = min(10_000, len(CONTENT) - start)
            if number in skipped or length <= 0:
                continue
            buffer = bytearray(length)
            source.readinto(start, memoryview(buffer))
            assert buffer == CONTENT[start : start + length]
        assert source.measure() == len(CONTENT)
    assert len(opened.decoders) == 1


def test_what_passed_of_a_stream_that_can_be_read_once_is_gone() -> None:
    source = Opened(is_repeatable=False, is_forkable=False).source
    with source.sequential():
        source.readinto(0, memoryview(bytearray(50_000)))
    with pytest.raises(ImageError, match="byte 0 is needed again") as failure:
        source.read(0, 1)
    assert failure.value.code == "image-not-repeatable"


def test_an_empty_read_brings_the_stream_on_and_keeps_nothing() -> None:
    source = Opened(is_repeatable=False, is_forkable=False).source
    with source.sequential():
        source.readinto(100_000, memoryview(bytearray()))
        # What lies behind is kept by `measure`, and what lay before is not.
        source.measure()
    assert source.read(100_000, 250_003) == CONTENT[100_000:]
    with pytest.raises(ImageError, match="needed again"):
        source.read(99_999, 1)


def test_more_than_the_limit_is_refused_before_much_of_it_is_kept() -> None:
    source = Opened().source
    with pytest.raises(ImageError, match="holds more than") as failure:
        source.measure(limit=1000)
    assert failure.value.code == "image-too-large"
    assert Opened().source.measure(limit=len(CONTENT)) == len(CONTENT)
    with pytest.raises(ImageError):
        Opened().source.measure(limit=len(CONTENT) - 1)


@pytest.mark.parametrize("declared", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_container_that_lies_about_the_size_is_found_out(declared: int) -> None:
    with pytest.raises(ImageError, match="should hold"):
        Opened(size=declared).source.measure()


def test_behind_a_damaged_place_nothing_is_given_however_often_it_is_asked_for() -> None:
    source = Opened(broken_at=100_000, is_repeatable=False, is_forkable=False).source
    good = source.read(0, 95_000)
    assert good == CONTENT[:95_000]
    attempts: list[Callable[[], object]] = [
        lambda: source.read(120_000, 10),
        lambda: source.read(120_000, 10),
        source.measure,
    ]
    for attempt in attempts:
        with pytest.raises(ImageError, match="is damaged"):
            attempt()
    assert source.read(0, 95_000) == good


def test_what_lies_behind_the_end_is_refused() -> None:
    source = Opened().source
    with pytest.raises(ImageError, match=f"ends at byte {len(CONTENT)}") as failure:
        source.read(len(CONTENT) - 5, 6)
    assert failure.value.code == "image-truncated"


def test_a_fork_of_an_image_whose_sum_is_known_is_checked_as_well() -> None:
    def open_decoder(at: int) -> CheckedDecoder:
        assert at == 0
        return CheckedDecoder("fake", FakeDecoder(CONTENT, 0, None), [check], lambda: b"other")

    check = Sha256Check(bytes.fromhex("e" * 64))  # not that of the content
    source = StreamSource(
        "fake", open_decoder, size=None, jump=None, is_repeatable=True, is_forkable=True
    )
    fork = source.fork()
    assert fork is not None
    for each in (source, fork):
        with pytest.raises(ImageError, match="its SHA-256 is") as failure:
            each.measure()
        assert failure.value.code == "sha256-differs"


class LongDecoder:
    """2 GiB of 0xAA, as a small file may hold."""

    def __init__(self) -> None:
        self._left = 2 * GIB

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self._left)
        buffer[:count] = (b"\xaa" * MIB)[:count]
        self._left -= count
        return count

    def close(self) -> None:
        """Nothing to do."""


def test_what_was_only_skipped_of_a_file_takes_little_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source = StreamSource(
        "fake",
        lambda _at: LongDecoder(),
        size=None,
        jump=None,
        is_repeatable=True,
        is_forkable=True,
    )
    assert source.read(0, 512) == source.read(GIB, 512)
    (link,) = (each for each in Path("/proc/self/fd").iterdir() if is_below(each, tmp_path))
    assert link.stat().st_blocks * 512 <= 100 * MIB
    # What lies near is asked for next, and is not decoded again.
    assert source.read(40 * MIB, 512) == source.read(GIB - 40 * MIB, 512)
    assert source.read(500 * MIB, 512) == source.read(0, 512)
    source.close()


def is_below(link: Path, folder: Path) -> bool:
    try:
        return link.readlink().is_relative_to(folder)
    except FileNotFoundError:
        return False  # the listing itself


def test_a_file_is_read_without_a_folder_for_what_was_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    source = Opened().source
    assert source.read(90_000, 10) == CONTENT[90_000:90_010]
    assert source.read(10, 10) == CONTENT[10:20]
    once = Opened(is_repeatable=False, is_forkable=False).source
    with pytest.raises(ImageError, match="cannot be kept in"):
        once.read(90_000, 10)


def test_more_than_was_promised_is_found_out_when_it_comes() -> None:
    source = Opened(size=100_000).source
    with pytest.raises(ImageError, match="holds more"), source.sequential():
        source.finish()
    assert source.size == 100_000
