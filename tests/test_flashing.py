import pytest
from fakes import MemoryMedium, MemorySource, RecordedProgress
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import InterruptedWriteError, VerificationError, WriteError
from balenaflash.extent import MIB, Extent
from balenaflash.flashing import flash, write_image
from balenaflash.image.table.model import (
    Partition,
    PartitionKind,
    PartitionTable,
    TableKind,
)
from balenaflash.planning import WritePlan
from balenaflash.progress import NO_PROGRESS, Phase
from balenaflash.verification import compare, digests

BOOT = Extent(1 * MIB, 2 * MIB)


def never() -> bool:
    return False


def make_plan(size: int, *, head: int = 4096) -> WritePlan:
    head = min(head, size)
    partition = Partition(1, BOOT, PartitionKind.PRIMARY, "0xe", None, None, ("boot",))
    table = PartitionTable(TableKind.MSDOS, 512, "0x0", (partition,), ())
    written = (Extent(head, size), Extent(0, head)) if size > head else (Extent(0, head),)
    return WritePlan(size, table, Extent(0, head), written)


def pattern(size: int) -> bytes:
    return bytes(range(1, 252)) * (size // 251 + 1)


@settings(max_examples=60, deadline=None)
@given(
    image=st.binary(min_size=1, max_size=30_000),
    alignment=st.sampled_from([1, 512, 4096]),
    head=st.sampled_from([512, 4096, 8192]),
)
def test_what_is_written_is_the_image_and_nothing_behind_it(
    image: bytes, alignment: int, head: int
) -> None:
    head = -(-head // alignment) * alignment
    padded = -(-len(image) // alignment) * alignment
    medium = MemoryMedium(padded + 8192, alignment=alignment)
    plan = make_plan(len(image), head=head)
    progress = RecordedProgress()
    report = flash(MemorySource(image), medium, plan, read_back=True, progress=progress, stop=never)
    assert medium.content[: len(image)] == image
    assert not any(medium.content[len(image) : padded]), "the last sector is filled with zeros"
    assert set(medium.content[padded:]) == {0xFF}, "nothing behind it is touched"
    assert report.bytes_written == len(image)
    size = len(image)
    assert progress.phases == [(Phase.WRITE, size, size), (Phase.VERIFY, size, size)]


def test_the_head_is_zeroed_first_and_written_last() -> None:
    image = pattern(10 * MIB)[: 10 * MIB]
    medium = MemoryMedium(10 * MIB)
    write_image(MemorySource(image), medium, make_plan(10 * MIB), NO_PROGRESS, never)
    assert medium.writes[0] == (0, 4096)
    assert medium.writes[-1] == (0, 4096)
    assert all(start >= 4096 for start, _end in medium.writes[1:-1])


@settings(max_examples=60, deadline=None)
@given(image=st.binary(min_size=1, max_size=20_000), data=st.data())
def test_one_spoiled_byte_is_always_found_and_named(image: bytes, data: st.DataObject) -> None:
    flip = data.draw(st.integers(0, len(image) - 1))
    mask = data.draw(st.integers(1, 255))
    medium = MemoryMedium(32_768)

    def spoil(content: bytearray) -> None:
        content[flip] ^= mask

    medium.spoil = spoil
    plan = make_plan(len(image))
    with pytest.raises(VerificationError, match=rf"at byte {flip} \("):
        flash(MemorySource(image), medium, plan, read_back=True, progress=NO_PROGRESS, stop=never)


def test_the_partition_of_a_difference_is_named() -> None:
    image = pattern(3 * MIB)[: 3 * MIB]
    medium = MemoryMedium(3 * MIB)
    place = BOOT.start + 4096

    def spoil(content: bytearray) -> None:
        content[place] ^= 1

    medium.spoil = spoil
    plan = make_plan(len(image))
    with pytest.raises(VerificationError, match=r"partition 1, 4\.0 KiB into it"):
        flash(MemorySource(image), medium, plan, read_back=True, progress=NO_PROGRESS, stop=never)


@settings(max_examples=60, deadline=None)
@given(flips=st.sets(st.integers(0, 40 * 512 - 1), min_size=1, max_size=40))
def test_differing_sectors_are_exactly_those_spoiled(flips: set[int]) -> None:
    image = pattern(40 * 512)[: 40 * 512]
    medium = MemoryMedium(len(image))
    plan = make_plan(len(image), head=512)
    source = MemorySource(image)
    record = write_image(source, medium, plan, NO_PROGRESS, never)
    for flip in flips:
        medium.content[flip] ^= 0x55
    medium.begin_read_back()
    comparison = compare(source, medium, plan, record, NO_PROGRESS, never)
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
    medium.begin_read_back()
    plan = make_plan(len(image))
    source = MemorySource(image)
    comparison = compare(source, medium, plan, digests(source, plan, 512), NO_PROGRESS, never)
    assert comparison.difference_count == 1500
    assert len(comparison.differences) == 1000


def test_a_failing_medium_leaves_a_target_that_cannot_boot() -> None:
    image = pattern(10 * MIB)[: 10 * MIB]
    medium = MemoryMedium(10 * MIB)
    medium.fails_at = 6 * MIB
    progress = RecordedProgress()
    with pytest.raises(WriteError):
        flash(
            MemorySource(image),
            medium,
            make_plan(len(image)),
            read_back=True,
            progress=progress,
            stop=never,
        )
    assert not any(medium.content[:4096])
    assert [phase for phase, _total, _done in progress.phases] == [Phase.WRITE]


def test_an_image_that_fails_half_way_is_a_failed_write() -> None:
    image = pattern(10 * MIB)[: 10 * MIB]
    medium = MemoryMedium(10 * MIB)
    source = MemorySource(image, broken_at=5 * MIB)
    with pytest.raises(WriteError, match="since the image failed") as failure:
        write_image(source, medium, make_plan(len(image)), NO_PROGRESS, never)
    assert failure.value.exit_status == 5
    assert failure.value.written == 4 * MIB - 4096
    assert not any(medium.content[:4096])


def test_a_stop_is_heeded_between_two_chunks() -> None:
    image = pattern(20 * MIB)[: 20 * MIB]
    medium = MemoryMedium(20 * MIB)
    asked = iter([False, False, True])
    plan = make_plan(len(image))
    with pytest.raises(InterruptedWriteError, match=r"interrupted after 8\.0 MiB") as stopped:
        write_image(MemorySource(image), medium, plan, NO_PROGRESS, lambda: next(asked))
    assert stopped.value.written == 8 * MIB - 4096
    assert medium.flushes == 1
    assert not any(medium.content[:4096])


def test_without_read_back_nothing_is_read() -> None:
    image = pattern(MIB)[:MIB]
    medium = MemoryMedium(MIB)
    report = flash(
        MemorySource(image),
        medium,
        make_plan(MIB),
        read_back=False,
        progress=NO_PROGRESS,
        stop=never,
    )
    assert report.bytes_read_back is None
    assert medium.content == image
