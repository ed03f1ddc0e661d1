"""Media that hold less than they say."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from commandline import RunBalenaflash
from faultdev import Beyond, MakeFaultDevice, read_error, write_error
from hypothesis import given, settings
from hypothesis import strategies as st

from balenaflash.errors import InterruptedWriteError, VerificationError, WriteError
from balenaflash.flashing.probe import MARK_SIZE, Pattern, check_end, probe
from balenaflash.progress import NO_PROGRESS
from balenaflash.rereading import Rereads
from balenaflash.targets.medium import Begun

KIB = 1 << 10
MIB = 1 << 20
SECTOR = 512


@dataclass
class FakeMedium:
    """A card of ``size`` bytes that has ``real``, sector by sector; the rest reads as 0xFF."""

    size: int
    real: int
    pattern: Pattern | None
    held: dict[int, bytes] = field(default_factory=dict)
    written: int = 0

    name = "card"
    alignment = SECTOR
    was_emptied = False
    rereads = Rereads()

    @property
    def capacity(self) -> int:
        return self.size

    def describe_unfinished(self, _begun: Begun) -> str:
        return "it is a card"

    def write(self, offset: int, buffer: memoryview) -> None:
        assert offset % SECTOR == 0
        assert offset + len(buffer) <= self.size
        self.written += len(buffer)
        for start in range(0, len(buffer), SECTOR):
            place = self._place(offset + start)
            if place is not None:
                self.held[place] = bytes(buffer[start : start + SECTOR])

    def readinto(self, offset: int, buffer: memoryview) -> None:
        for start in range(0, len(buffer), SECTOR):
            place = self._place(offset + start)
            beyond = bytes([0 if self.pattern is Pattern.ZEROS else 0xA5]) * SECTOR
            content = beyond if place is None else self.held.get(place, b"\xff" * SECTOR)
            buffer[start : start + SECTOR] = content

    def _place(self, offset: int) -> int | None:
        """Where the sector at ``offset`` lies; ``None`` where there is nothing."""
        if offset < self.real:
            return offset
        if self.pattern is Pattern.FAILS:
            raise WriteError("card: failed")
        return offset % self.real if self.pattern is Pattern.WRAPS else None

    def zero(self, offset: int, length: int) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        pass

    def begin_read_back(self) -> None:
        pass


def never() -> bool:
    return False


SIZES = st.integers(64 * KIB // SECTOR, 256 * MIB // SECTOR).map(lambda sectors: sectors * SECTOR)


@settings(max_examples=60)
@given(SIZES, st.floats(0.001, 0.999), st.sampled_from(Pattern))
def test_the_real_size_of_any_fake_is_found(size: int, part: float, pattern: Pattern) -> None:
    real = max(32 * KIB, int(size * part) // SECTOR * SECTOR)
    medium = FakeMedium(size, min(real, size - MARK_SIZE), pattern)
    report = probe(medium, NO_PROGRESS, never)
    assert not report.is_genuine
    assert report.pattern is pattern
    assert report.real is not None
    if pattern is Pattern.WRAPS:
        assert report.real == medium.real
    else:
        assert 0 <= medium.real - report.real < MARK_SIZE


@pytest.mark.parametrize("parts", [2, 3, 4, 6, 8, 16, 25, 49])
@pytest.mark.parametrize("size", [100 * MIB, 3 * 128 * MIB + 5 * SECTOR])
def test_a_fake_of_a_fraction_is_not_taken_for_one_of_another(size: int, parts: int) -> None:
    medium = FakeMedium(size, size // parts // SECTOR * SECTOR, Pattern.WRAPS)
    assert probe(medium, NO_PROGRESS, never).real == medium.real


@settings(max_examples=20)
@given(SIZES)
def test_a_genuine_one_is_called_so_and_mostly_not_written(size: int) -> None:
    medium = FakeMedium(size, size, None)
    assert probe(medium, NO_PROGRESS, never).is_genuine
    assert medium.written <= size


def test_of_a_large_card_little_is_written() -> None:
    medium = FakeMedium(64 << 30, 64 << 30, None)
    assert probe(medium, NO_PROGRESS, never).is_genuine
    assert medium.written < 100 * MIB


def test_stopping_tells_that_it_was_overwritten() -> None:
    answers = itertools.chain([False] * 3, itertools.repeat(True))
    medium = FakeMedium(64 * MIB, 64 * MIB, None)
    with pytest.raises(InterruptedWriteError, match="partly overwritten"):
        probe(medium, NO_PROGRESS, lambda: next(answers))


@pytest.mark.parametrize("pattern", [Pattern.WRAPS, Pattern.ZEROS, Pattern.OTHER])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_look_at_the_end_finds_the_usual_fakes(pattern: Pattern, parts: int) -> None:
    size = 128 * MIB
    medium = FakeMedium(size, size // parts, pattern)
    with pytest.raises(VerificationError, match="a fake") as caught:
        check_end(medium)
    assert caught.value.problems[0].code == "target-fake"


@settings(max_examples=50)
@given(SIZES)
def test_a_look_at_the_end_leaves_a_genuine_one_as_it_was(size: int) -> None:
    medium = FakeMedium(size, size, None)
    for offset in range(0, size, size // 7 // SECTOR * SECTOR):
        medium.held[offset] = offset.to_bytes(8, "big") * (SECTOR // 8)
    before = dict(medium.held)
    check_end(medium)
    assert all(
        content == before.get(offset, b"\xff" * SECTOR) for offset, content in medium.held.items()
    )


def run_probe(
    balenaflash: RunBalenaflash, node: object, *options: str
) -> tuple[int, dict[str, object], Sequence[str]]:
    run = balenaflash("devices", "probe", "--json", "--yes", *options, str(node))
    answer = json.loads(run.stdout)
    return run.returncode, answer["result"], [error["code"] for error in answer["errors"]]


@pytest.mark.parametrize("beyond", list(Beyond))
def test_a_counterfeit_that_has_a_quarter_is_told_from_its_real_size(
    fault_device: MakeFaultDevice, balenaflash: RunBalenaflash, beyond: Beyond
) -> None:
    device = fault_device(size=256 * MIB)
    assert run_probe(balenaflash, device.node, "--destructive")[0] == 0
    device.set(real_size=64 * MIB, beyond=beyond)
    status, result, codes = run_probe(balenaflash, device.node, "--destructive")
    assert (status, codes) == (6, ["target-fake"])
    real = result["real_size"]
    assert isinstance(real, int)
    assert abs(real - 64 * MIB) <= 64 * MIB // 50
    assert result["claimed_size"] == 256 * MIB


def test_places_that_fail_are_not_called_a_fake(
    fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=64 * MIB)
    device.set(faults=[read_error(2 * MIB, 2 * MIB + 4096)])
    status, result, codes = run_probe(balenaflash, device.node, "--destructive")
    assert (status, codes, result["real_size"]) == (6, ["target-failing"], None)


def test_one_that_fails_at_its_start_ends_in_status_5(
    fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=64 * MIB)
    device.set(faults=[write_error(0, 64 * MIB)])
    run = balenaflash("devices", "probe", "--destructive", "--yes", device.node)
    assert run.returncode == 5
    assert run.stdout == ""


def test_nothing_is_written_before_the_user_agrees(
    fault_device: MakeFaultDevice, balenaflash: RunBalenaflash
) -> None:
    device = fault_device(size=64 * MIB)
    for options in (["--yes"], ["--destructive"]):
        run = balenaflash("devices", "probe", *options, device.node)
        assert run.returncode == 4
    assert device.stats().bytes_written == 0
