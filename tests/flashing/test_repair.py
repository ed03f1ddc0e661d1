"""What reads back wrong: repaired, or given up with the reason."""

import random
from collections.abc import Callable

import pytest
from fakes import MemoryMedium, MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import BalenaflashError, VerificationError
from balenaflash.flashing.flash import FlashOptions, FlashReport, Target, flash
from balenaflash.flashing.plan import WritePlan
from balenaflash.formats.partitions.model import PartitionTable, TableKind
from balenaflash.progress import NO_PROGRESS
from balenaflash.source.base import Source
from balenaflash.source.layers import Patch
from balenaflash.units import KIB, MIB, Extent

SIZE = 24 * MIB
IMAGE = random.Random(3).randbytes(SIZE)  # noqa: S311 - no key
Store = Callable[[int, bytes, bytearray], None]


class ReadOnce(MemorySource):
    """As standard input."""

    def fork(self) -> Source | None:
        return None


def flash_one(
    medium: MemoryMedium,
    source: Source | None = None,
    *,
    skip_equal: bool = False,
    move: tuple[Patch, ...] = (),
    free: tuple[Extent, ...] = (),
) -> FlashReport:
    plan = WritePlan(SIZE, PartitionTable(TableKind.MSDOS, 512, "0x0", (), ()), free)
    (outcome,) = flash(
        source or MemorySource(IMAGE),
        plan,
        [Target(medium, NO_PROGRESS, move)],
        options=FlashOptions(skip_equal=skip_equal),
        stop=lambda: False,
    )
    if isinstance(outcome, BalenaflashError):
        raise outcome
    return outcome


class WrappingMedium(MemoryMedium):
    """As a counterfeit card: the address is taken modulo what is really there."""

    def __init__(self, real: int, size: int = SIZE) -> None:
        super().__init__(size)
        self._real = real

    def write(self, offset: int, buffer: memoryview) -> None:
        for start in range(0, len(buffer), 512):
            place = (offset + start) % self._real
            self.content[place : place + 512] = buffer[start : start + 512]

    def readinto(self, offset: int, buffer: memoryview) -> None:
        for start in range(0, len(buffer), 512):
            place = (offset + start) % self._real
            buffer[start : start + 512] = self.content[place : place + 512]


@settings(max_examples=8)
@given(real=st.integers(2 * MIB // 512, (SIZE - MIB) // 512))
def test_a_card_that_wraps_anywhere_is_called_a_fake(real: int) -> None:
    with pytest.raises(VerificationError, match="a fake"):
        flash_one(WrappingMedium(real * 512))


# What was right before the last write, and not after it


@settings(max_examples=8)
@given(blocks=st.integers(4 * MIB // (4 * KIB), (SIZE - 2 * MIB) // (4 * KIB)))
def test_what_was_equal_is_read_again_after_the_last_write(blocks: int) -> None:
    real = blocks * 4 * KIB
    medium = WrappingMedium(real)
    # An earlier, smaller image: right as far as the card goes.
    medium.content[:real] = IMAGE[:real]
    medium.insert_again()
    # What lands on the head is free: so all that was written reads back right.
    with pytest.raises(VerificationError):
        flash_one(medium, skip_equal=True, free=(Extent(real, real + MIB),))


def test_what_is_all_equal_is_read_once() -> None:
    medium = MemoryMedium(SIZE)
    medium.content[:] = IMAGE
    medium.insert_again()
    report = flash_one(medium, skip_equal=True)
    assert (report.bytes_written, report.bytes_equal) == (0, SIZE)
    assert (report.bytes_read_back, medium.writes) == (0, [])


def test_what_is_equal_but_for_a_byte_is_read_back_whole() -> None:
    medium = MemoryMedium(SIZE)
    medium.content[:] = IMAGE
    medium.content[10 * MIB] ^= 1
    medium.insert_again()
    report = flash_one(medium, skip_equal=True)
    assert report.bytes_written == 5 * MIB  # a chunk, and the head
    assert report.bytes_read_back == SIZE
    assert medium.content == IMAGE


@settings(max_examples=8)
@given(hit=st.integers(MIB // 512, SIZE // 512 - 1))
def test_what_is_written_at_the_end_of_a_disk_is_written_before_the_image_is_read(hit: int) -> None:
    size = 3 * SIZE
    # The last sector of the disk is really the one at `hit`.
    medium = WrappingMedium(size - 512 - hit * 512, size)
    with pytest.raises(VerificationError):
        flash_one(medium, move=(Patch(size - 512, b"\x5a" * 512), Patch(512, b"\xa5" * 512)))


def test_what_this_target_holds_in_place_of_the_image_is_repaired_from_that() -> None:
    size = SIZE + MIB
    medium = MemoryMedium(size)
    move = (Patch(size - 512, b"\x5a" * 512), Patch(512, b"\xa5" * 512))

    def spoil(content: bytearray) -> None:
        content[600] ^= 1
        content[size - 3] ^= 1
        medium.spoil = None

    medium.spoil = spoil
    report = flash_one(medium, move=move)
    assert medium.content[:SIZE] == IMAGE[:512] + b"\xa5" * 512 + IMAGE[1024:]
    assert medium.content[SIZE:-512] == b"\xff" * (MIB - 512)
    assert medium.content[-512:] == b"\x5a" * 512
    assert [each.first_byte for each in report.repaired] == [600, size - 3]


def test_an_image_that_changed_meanwhile_repairs_nothing() -> None:
    class Changing(MemorySource):
        def readinto(self, offset: int, buffer: memoryview) -> None:
            super().readinto(offset, buffer)
            if medium.spoil is None:
                buffer[0] ^= 1

    medium = MemoryMedium(SIZE)

    def spoil(content: bytearray) -> None:
        content[8 * MIB] ^= 1
        medium.spoil = None

    medium.spoil = spoil
    with pytest.raises(VerificationError, match="the image has changed since it was written"):
        flash_one(medium, Changing(IMAGE))


@pytest.mark.parametrize("real", [8 * MIB, SIZE // 4 + 512, 7 * MIB + 4096 * 3])
def test_it_is_called_so_also_where_the_image_cannot_be_read_again(real: int) -> None:
    with pytest.raises(VerificationError, match="a fake") as failure:
        flash_one(WrappingMedium(real), ReadOnce(IMAGE))
    assert failure.value.exit_status == 6


def test_a_card_that_ends_early_is_called_a_fake() -> None:
    medium = MemoryMedium(SIZE)

    def store(offset: int, data: bytes, content: bytearray) -> None:
        real = 10 * MIB + 512
        kept = data[: max(0, real - offset)]
        content[offset : offset + len(data)] = kept.ljust(len(data), b"\0")

    medium.write_through = store
    with pytest.raises(VerificationError, match=r"reads zeros whatever is written.*a fake"):
        flash_one(medium)


def test_three_regions_that_stay_wrong_are_enough() -> None:
    medium = MemoryMedium(SIZE)
    rewrites: list[int] = []
    broken = [2 * MIB, 6 * MIB, 10 * MIB, 14 * MIB, 18 * MIB]

    def store(offset: int, data: bytes, content: bytearray) -> None:
        rewrites.append(offset)
        content[offset : offset + len(data)] = data
        for place in broken:
            content[place] = IMAGE[place] ^ 1

    medium.write_through = store
    with pytest.raises(VerificationError, match=r"3 ranges differ.*does not accept it") as failure:
        flash_one(medium)
    assert failure.value.exit_status == 6
    assert len(rewrites) == 8 + 3, "the zeros of the head, seven chunks, and three again"


def test_an_image_that_can_be_read_once_is_not_repaired_and_that_is_said() -> None:
    medium = MemoryMedium(SIZE)
    left = [9 * MIB + 77]

    def spoil(content: bytearray) -> None:
        if left:
            content[left.pop()] ^= 1

    medium.spoil = spoil
    with pytest.raises(VerificationError, match="the image can be read only once") as failure:
        flash_one(medium, ReadOnce(IMAGE))
    assert failure.value.exit_status == 6


def test_an_image_that_fails_when_it_is_read_again_is_still_a_difference() -> None:
    medium = MemoryMedium(SIZE)

    class BrokenFork(MemorySource):
        def fork(self) -> Source | None:
            return MemorySource(IMAGE, broken_at=MIB)

    medium.spoil = lambda content: content.__setitem__(5 * MIB, IMAGE[5 * MIB] ^ 1)
    with pytest.raises(VerificationError, match="cannot be read again") as failure:
        flash_one(medium, BrokenFork(IMAGE))
    assert failure.value.exit_status == 6


def test_a_write_that_was_dropped_once_is_made_good() -> None:
    medium = MemoryMedium(SIZE)
    dropped = [8 * MIB]

    def store(offset: int, data: bytes, content: bytearray) -> None:
        if offset in dropped:
            dropped.remove(offset)
        else:
            content[offset : offset + len(data)] = data

    medium.write_through = store
    report = flash_one(medium)
    assert medium.content == IMAGE
    (repaired,) = report.repaired
    assert (repaired.extent.start, repaired.extent.end) == (8 * MIB, 12 * MIB)


def test_a_write_that_spoils_another_place_is_found_by_reading_all_again() -> None:
    medium = MemoryMedium(SIZE)
    seen: set[int] = set()

    def store(offset: int, data: bytes, content: bytearray) -> None:
        content[offset : offset + len(data)] = data
        if offset == 8 * MIB:
            # Wrong the first time; and the second time it is another place that is wrong.
            content[8 * MIB if offset not in seen else 17 * MIB] ^= 1
        seen.add(offset)

    medium.write_through = store
    with pytest.raises(VerificationError, match="right until other ranges were written again"):
        flash_one(medium)
