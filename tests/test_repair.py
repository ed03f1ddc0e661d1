"""What reads back wrong: repaired, or given up with the reason."""

import random
from collections.abc import Callable

import pytest
from fakes import MemoryMedium, MemorySource
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import BalenaflashError, VerificationError
from balenaflash.extent import MIB
from balenaflash.flashing import FlashOptions, FlashReport, Target, flash
from balenaflash.image.source import Source
from balenaflash.image.table.model import PartitionTable, TableKind
from balenaflash.planning import WritePlan
from balenaflash.progress import NO_PROGRESS

SIZE = 24 * MIB
IMAGE = random.Random(3).randbytes(SIZE)  # noqa: S311 - no key
Store = Callable[[int, bytes, bytearray], None]


class ReadOnce(MemorySource):
    """As standard input."""

    def fork(self) -> Source | None:
        return None


def flash_one(medium: MemoryMedium, source: Source | None = None) -> FlashReport:
    plan = WritePlan(SIZE, PartitionTable(TableKind.MSDOS, 512, "0x0", (), ()))
    (outcome,) = flash(
        source or MemorySource(IMAGE),
        plan,
        [Target(medium, NO_PROGRESS)],
        options=FlashOptions(),
        stop=lambda: False,
    )
    if isinstance(outcome, BalenaflashError):
        raise outcome
    return outcome


class WrappingMedium(MemoryMedium):
    """As a counterfeit card: the address is taken modulo what is really there."""

    def __init__(self, real: int) -> None:
        super().__init__(SIZE)
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
    with pytest.raises(VerificationError, match=r"3 ranges differ.*does not take it") as failure:
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
    assert failure.value.written == SIZE


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
