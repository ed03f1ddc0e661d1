"""Writing, reading back and repairing, onto media in memory."""

import _thread
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import pytest
from fakes import MemoryMedium, MemorySource, RecordedProgress
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import (
    BalenaflashError,
    ImageError,
    ImageFailedError,
    InterruptedWriteError,
    LeftError,
    VerificationError,
    WriteError,
)
from balenaflash.flashing.flash import FlashOptions, FlashReport, Target, flash
from balenaflash.flashing.plan import WritePlan
from balenaflash.flashing.read_back import verify
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable, TableKind
from balenaflash.progress import NO_PROGRESS, Phase, Progress, Stop
from balenaflash.source.base import Source
from balenaflash.targets.medium import Begun
from balenaflash.units import KIB, MIB, Extent

BOOT = Extent(1 * MIB, 2 * MIB)


def never() -> bool:
    return False


def make_plan(size: int | None, *, free: tuple[Extent, ...] | None = ()) -> WritePlan:
    partition = Partition(1, BOOT, PartitionKind.PRIMARY, "0xe", None, None, ("boot",))
    table = PartitionTable(TableKind.MSDOS, 512, "0x0", (partition,), ())
    return WritePlan(size, table, free)


@cache
def pattern(size: int) -> bytes:
    """No two sectors of 512 bytes are the same."""
    return b"".join(number.to_bytes(4, "big") * 128 for number in range(1, size // 512 + 2))[:size]


def flash_one(
    source: Source,
    medium: MemoryMedium,
    plan: WritePlan,
    *,
    progress: Progress = NO_PROGRESS,
    stop: Stop = never,
    options: FlashOptions | None = None,
) -> FlashReport:
    """Flash one medium; its failure is raised."""
    (outcome,) = flash(
        source, plan, [Target(medium, progress)], options=options or FlashOptions(), stop=stop
    )
    if isinstance(outcome, BalenaflashError):
        raise outcome
    return outcome


def before_the_read_back(change: Callable[[bytearray], None]) -> Callable[[bytearray], None]:
    """Make ``change`` once, when reading back begins for the first time."""
    left = [change]
    return lambda content: left.pop()(content) if left else None


@settings(max_examples=15)
@given(
    image=st.binary(min_size=1, max_size=30_000),
    before=st.sampled_from([0, MIB - 777, MIB, 4 * MIB - 2048]),
    alignment=st.sampled_from([1, 512, 4096]),
)
def test_what_is_written_is_the_image_and_nothing_behind_it(
    image: bytes, before: int, alignment: int
) -> None:
    image = bytes(before) + image
    padded = -(-len(image) // alignment) * alignment
    medium = MemoryMedium(padded + 8192, alignment=alignment)
    progress = RecordedProgress()
    report = flash_one(MemorySource(image), medium, make_plan(len(image)), progress=progress)
    assert medium.content[: len(image)] == image
    assert not any(medium.content[len(image) : padded]), "the last sector is filled with zeros"
    assert set(medium.content[padded:]) == {0xFF}, "nothing behind it is touched"
    size = len(image)
    assert (report.image_size, report.bytes_written, report.bytes_read_back) == (size, size, size)
    assert progress.phases == [(Phase.WRITE, size, size), (Phase.VERIFY, size, size)]


BLOCKS = 3 * 1024  # of 4 KiB: three chunks


@settings(max_examples=10)
@given(
    cuts=st.lists(st.integers(MIB, BLOCKS * 4 * KIB), min_size=2, max_size=20, unique=True),
    zeros=st.lists(st.integers(0, BLOCKS - 1), max_size=3),
)
def test_whatever_is_not_free_is_as_in_the_image_and_little_more_is_written(
    cuts: list[int], zeros: list[int]
) -> None:
    size = BLOCKS * 4 * KIB
    content = bytearray(pattern(size))
    for start in zeros:
        end = min(start * 4 * KIB + 300 * KIB, size)
        content[start * 4 * KIB : end] = bytes(end - start * 4 * KIB)
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    free = tuple(Extent(*pair) for pair in zip(cuts[::2], cuts[1::2], strict=True))
    medium = MemoryMedium(size)
    progress = RecordedProgress()
    plan = make_plan(size, free=free)
    report = flash_one(MemorySource(bytes(content)), medium, plan, progress=progress)
    position = 0
    for extent in (*free, Extent(size, size)):
        assert medium.content[position : extent.start] == content[position : extent.start]
        position = extent.end
    unused = sum(max(0, extent.end // 4096 - -(-extent.start // 4096)) for extent in free) * 4096
    assert size - unused <= report.bytes_written <= size - unused + 16 * KIB * len(free)
    # A range that is free may have been written for a short gap; what is shown adds up.
    (_write, total, done), _verify = progress.phases
    assert total == done == size - unused


def test_long_zeros_are_left_to_the_medium_and_short_ones_are_written() -> None:
    content = bytearray(pattern(8 * MIB))
    content[2 * MIB : 3 * MIB] = bytes(MIB)
    content[5 * MIB : 5 * MIB + 8 * KIB] = bytes(8 * KIB)
    medium = MemoryMedium(8 * MIB)
    flash_one(MemorySource(bytes(content)), medium, make_plan(8 * MIB))
    assert medium.zeroed == [(2 * MIB, 3 * MIB)]
    assert medium.content == content


def test_the_head_is_zeroed_and_flushed_first_and_written_last() -> None:
    image = pattern(10 * MIB)
    medium = MemoryMedium(10 * MIB)
    flushes: list[tuple[int, int]] = []

    def store(offset: int, data: bytes, content: bytearray) -> None:
        flushes.append((offset, medium.flushes))
        content[offset : offset + len(data)] = data

    medium.write_through = store
    flash_one(MemorySource(image), medium, make_plan(10 * MIB))
    assert medium.writes[0] == medium.writes[-1] == (0, MIB)
    assert all(start >= MIB for start, _end in medium.writes[1:-1])
    assert {count for offset, count in flushes if offset} == {1}, "the zeros were flushed"
    assert flushes[-1] == (0, 2), "and so was all the rest, before the head"


@settings(max_examples=15)
@given(
    image=st.binary(min_size=1, max_size=20_000),
    before=st.sampled_from([0, MIB - 300, 4 * MIB - 4096]),
    data=st.data(),
)
def test_one_spoiled_byte_is_always_found_and_repaired(
    image: bytes, before: int, data: st.DataObject
) -> None:
    image = pattern(before) + image
    flip = data.draw(st.integers(0, len(image) - 1))
    mask = data.draw(st.integers(1, 255))
    medium = MemoryMedium(-(-len(image) // 512) * 512)

    def spoil(content: bytearray) -> None:
        content[flip] ^= mask

    medium.spoil = before_the_read_back(spoil)
    report = flash_one(MemorySource(image), medium, make_plan(len(image)))
    (repaired,) = report.repaired
    assert repaired.first_byte == flip
    assert repaired.extent.start == flip // 512 * 512
    assert medium.content[: len(image)] == image
    assert report.unsteady_reads == 0


def test_a_byte_that_stays_wrong_is_named_with_its_partition() -> None:
    image = pattern(3 * MIB)
    medium = MemoryMedium(3 * MIB)
    place = BOOT.start + 4096
    medium.spoil = lambda content: content.__setitem__(place, image[place] ^ 1)
    with pytest.raises(
        VerificationError, match=rf"at byte {place} \(partition 1, 4\.0 KiB into it\)"
    ):
        flash_one(MemorySource(image), medium, make_plan(len(image)))


def test_a_chunk_that_reads_right_the_second_time_is_not_written_again() -> None:
    image = pattern(6 * MIB)
    reads: list[int] = []

    class OnceWrong(MemoryMedium):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            super().readinto(offset, buffer)
            if offset == 4 * MIB and offset not in reads:
                buffer[100] ^= 1
            reads.append(offset)

    medium = OnceWrong(6 * MIB)
    report = flash_one(MemorySource(image), medium, make_plan(len(image)))
    assert (report.unsteady_reads, report.repaired) == (1, ())
    assert len([write for write in medium.writes if write[0] == 4 * MIB]) == 1


@settings(max_examples=15)
@given(flips=st.sets(st.integers(0, 40 * 512 - 1), min_size=1, max_size=40))
def test_differing_sectors_are_exactly_those_spoiled(flips: set[int]) -> None:
    image = pattern(40 * 512)
    medium = MemoryMedium(len(image))
    medium.content[:] = image
    for flip in flips:
        medium.content[flip] ^= 0x55
    medium.flush()
    comparison = verify(MemorySource(image), medium, make_plan(len(image)), NO_PROGRESS, never)
    sectors = {
        sector
        for difference in comparison.differences
        for sector in range(difference.extent.start // 512, difference.extent.end // 512)
    }
    assert sectors == {flip // 512 for flip in flips}
    assert min(difference.first_byte for difference in comparison.differences) == min(flips)


def test_a_wholly_different_medium_is_counted_but_not_kept_whole() -> None:
    image = bytes(512) * 3000
    medium = MemoryMedium(len(image))
    for sector in range(0, 3000, 2):
        medium.content[sector * 512 : sector * 512 + 512] = bytes(512)
    medium.flush()
    comparison = verify(MemorySource(image), medium, make_plan(len(image)), NO_PROGRESS, never)
    assert comparison.difference_count == 1500
    assert len(comparison.differences) == 1000


def test_a_failing_medium_leaves_a_target_that_cannot_boot() -> None:
    image = pattern(10 * MIB)
    medium = MemoryMedium(10 * MIB)
    medium.fails_at = 6 * MIB
    progress = RecordedProgress()
    with pytest.raises(WriteError, match=r"failed; 3\.0 MiB had been written, it stays") as failure:
        flash_one(MemorySource(image), medium, make_plan(len(image)), progress=progress)
    assert failure.value.exit_status == 5
    assert not any(medium.content[:MIB])
    assert [phase for phase, _total, _done in progress.phases] == [Phase.WRITE]


def test_an_image_that_fails_half_way_is_told_apart_from_a_failing_medium() -> None:
    image = pattern(10 * MIB)
    medium = MemoryMedium(10 * MIB)
    source = MemorySource(image, broken_at=5 * MIB)
    with pytest.raises(ImageFailedError, match="because the image failed") as failure:
        flash_one(source, medium, make_plan(len(image)))
    assert failure.value.exit_status == 7
    assert failure.value.code == "image-failed"
    assert not any(medium.content[:MIB])


def test_an_image_that_fails_before_anything_is_written_leaves_the_target_alone() -> None:
    image = pattern(10 * MIB)
    medium = MemoryMedium(10 * MIB)
    before = bytes(medium.content)
    with pytest.raises(ImageError) as failure:
        flash_one(MemorySource(image, broken_at=2 * MIB), medium, make_plan(len(image)))
    assert failure.value.exit_status == 3
    assert medium.content == before


@pytest.mark.parametrize(
    ("fails_at", "state"),
    [(0, Begun.FIRST_WRITE), (MIB, Begun.START_ZEROED), (6 * MIB, Begun.PART)],
)
def test_how_far_writing_had_come_is_told(fails_at: int, state: Begun) -> None:
    image = pattern(10 * MIB)
    medium = MemoryMedium(10 * MIB)
    medium.fails_at = fails_at
    with pytest.raises(WriteError, match=state.name) as failure:
        flash_one(MemorySource(image), medium, make_plan(len(image)))
    assert ("had been written" in str(failure.value)) == (state is Begun.PART)


def test_a_crash_of_the_reader_is_raised_and_the_target_does_not_boot() -> None:
    class Crashing(MemorySource):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            if offset >= 8 * MIB:
                raise ZeroDivisionError("a bug")
            super().readinto(offset, buffer)

    medium = MemoryMedium(12 * MIB)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        flash_one(Crashing(pattern(12 * MIB)), medium, make_plan(12 * MIB))
    assert not any(medium.content[:MIB])


def test_a_stop_is_heeded_between_two_chunks() -> None:
    image = pattern(20 * MIB)
    medium = MemoryMedium(20 * MIB)
    asked = iter([False, False, True])
    with pytest.raises(InterruptedWriteError, match=r"interrupted after 7\.0 MiB"):
        flash_one(MemorySource(image), medium, make_plan(len(image)), stop=lambda: next(asked))
    assert not any(medium.content[:MIB])


def test_a_stop_is_heeded_while_the_image_stands_still() -> None:
    still = threading.Event()

    class Standing(MemorySource):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            if offset >= 4 * MIB:
                still.wait(30)
            super().readinto(offset, buffer)

    medium = MemoryMedium(8 * MIB)
    started = time.monotonic()
    try:
        with pytest.raises(InterruptedWriteError):
            flash_one(
                Standing(pattern(8 * MIB)),
                medium,
                make_plan(8 * MIB),
                stop=lambda: bool(medium.writes[1:]),
            )
        assert time.monotonic() - started < 10
    finally:
        still.set()
    assert not any(medium.content[:MIB])


def test_a_user_who_leaves_at_once_waits_for_nobody() -> None:
    still = threading.Event()

    class Standing(MemoryMedium):
        def write(self, offset: int, buffer: memoryview) -> None:
            if offset >= 4 * MIB:
                still.wait(30)
            super().write(offset, buffer)

    medium = Standing(8 * MIB)
    timer = threading.Timer(0.5, _thread.interrupt_main)
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(LeftError, match="what it holds is not known"):
            flash_one(MemorySource(pattern(8 * MIB)), medium, make_plan(8 * MIB))
        assert time.monotonic() - started < 10
    finally:
        still.set()


def test_without_read_back_nothing_is_read() -> None:
    image = pattern(MIB)
    medium = MemoryMedium(MIB)
    report = flash_one(
        MemorySource(image), medium, make_plan(MIB), options=FlashOptions(read_back=False)
    )
    assert report.bytes_read_back is None
    assert medium.content == image


SKIP = FlashOptions(skip_equal=True)


@settings(max_examples=8)
@given(changed=st.sets(st.integers(0, 20 * MIB // 512 - 1), max_size=4))
def test_only_chunks_that_differ_are_written(changed: set[int]) -> None:
    image = pattern(20 * MIB)
    medium = MemoryMedium(20 * MIB)
    medium.content[:] = image
    medium.insert_again()
    for sector in changed:
        medium.content[sector * 512] ^= 1
    report = flash_one(MemorySource(image), medium, make_plan(20 * MIB), options=SKIP)
    assert medium.content == image
    # Cut at multiples of 4 MiB; the first MiB is a chunk of its own, and written if any is.
    touched = {Extent(0, MIB)} if changed else set[Extent]()
    for sector in changed:
        start = sector * 512
        if start >= MIB:
            touched.add(
                Extent(max(MIB, start // (4 * MIB) * 4 * MIB), (start // (4 * MIB) + 1) * 4 * MIB)
            )
    assert report.bytes_written == sum(extent.size for extent in touched)
    assert report.bytes_equal == 20 * MIB - report.bytes_written


def test_an_equal_target_that_is_interrupted_was_not_changed() -> None:
    image = pattern(20 * MIB)
    medium = MemoryMedium(20 * MIB)
    medium.content[:] = image
    medium.insert_again()
    asked = iter([False, False, True])
    with pytest.raises(InterruptedWriteError, match="NOTHING"):
        flash_one(
            MemorySource(image),
            medium,
            make_plan(20 * MIB),
            stop=lambda: next(asked),
            options=SKIP,
        )
    assert medium.content == image
    assert medium.writes == []


@settings(max_examples=6)
@given(stop_after=st.integers(0, 6), changed=st.integers(MIB, 20 * MIB - 1))
def test_half_an_update_never_boots(stop_after: int, changed: int) -> None:
    image = pattern(20 * MIB)
    medium = MemoryMedium(20 * MIB)
    medium.content[:] = image
    medium.content[changed] ^= 1
    medium.insert_again()
    before = bytes(medium.content)
    asked = iter([False] * stop_after + [True] * 100)
    with suppress(InterruptedWriteError):
        flash_one(
            MemorySource(image),
            medium,
            make_plan(20 * MIB),
            stop=lambda: next(asked),
            options=SKIP,
        )
    assert medium.content in (before, image) or not any(medium.content[:MIB])
