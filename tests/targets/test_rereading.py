"""A read that fails or is wrong once is repeated; twice in a row it is the medium."""

import errno
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from builders import BuiltImage, Layout
from commandline import RunBalenaflash
from faultdev import Fault, FaultDevice, MakeFaultDevice, bit_flip, read_error
from imagecopies import MakeImage
from write_judges import differing_bytes, free_extents

from balenaflash.rereading import Rereads
from balenaflash.units import MIB

SECTOR = 5 * MIB
"""Offset of the sector whose reads go wrong, in the boot partition's tables."""


@pytest.fixture
def built(image: MakeImage) -> BuiltImage:
    return image(Layout.GPT_FAT16)


@pytest.fixture
def card(built: BuiltImage, fault_device: MakeFaultDevice) -> FaultDevice:
    """A card that holds the image."""
    device = fault_device(size=built.path.stat().st_size)
    device.fill(built.path.read_bytes())
    return device


def failing(count: int) -> Fault:
    return read_error(SECTOR, SECTOR + 512, count=count)


def flipping(count: int) -> Fault:
    return replace(bit_flip(SECTOR, on_read=True), count=count)


@pytest.mark.parametrize(
    ("fault", "key"), [(failing(1), "failed_reads"), (flipping(1), "unsteady_reads")]
)
@pytest.mark.parametrize("command", [("write", "--yes", "--all"), ("verify", "--all")])
def test_what_goes_wrong_once_is_read_again_and_said(
    command: tuple[str, ...],
    fault: Fault,
    key: str,
    built: BuiltImage,
    card: FaultDevice,
    balenaflash: RunBalenaflash,
) -> None:
    card.set(faults=[fault])
    run = balenaflash(*command, "--json", built.path, card.node)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["result"][key] == 1
    assert card.stats().injected == 1
    card.set(faults=[fault])
    run = balenaflash(*command, built.path, card.node)
    assert "the reader or the cable is not reliable" in run.stdout + run.stderr
    assert differing_bytes(built.path, card.node, free_extents(built, built.path)) == []


@pytest.mark.parametrize("command", [("write", "--yes", "--all"), ("verify", "--all")])
def test_what_fails_twice_in_a_row_is_the_medium(
    command: tuple[str, ...], built: BuiltImage, card: FaultDevice, balenaflash: RunBalenaflash
) -> None:
    card.set(faults=[failing(2)])
    run = balenaflash(*command, built.path, card.node)
    assert (run.returncode, run.stdout) == (5, ""), run.stderr
    assert "the medium reports an error" in run.stderr


def test_a_source_that_fails_once_is_read_again_and_that_is_said(
    built: BuiltImage, card: FaultDevice, balenaflash: RunBalenaflash, tmp_path: Path
) -> None:
    copy, warnings = tmp_path / "copy.img", list[str]()
    for count in range(1, 6):
        # The first failures are met by the kernel itself, which reads ahead and tries again.
        card.set(faults=[failing(count)])
        run = balenaflash("write", "--json", "--overwrite", card.node, copy)
        assert run.returncode == 0, run.stderr
        assert differing_bytes(built.path, copy, []) == []
        warnings = json.loads(run.stdout)["result"]["warnings"]
        if warnings:
            break
        subprocess.run(["blockdev", "--flushbufs", card.node], check=True)
    assert [each.startswith(f"{card.node}: 1 read failed") for each in warnings] == [True]


def failures(*codes: int) -> Rereads:
    """After reads that fail with each of ``codes``, and then succeed."""
    rereads, left = Rereads(), list(codes)

    def read() -> bytes:
        if left:
            raise OSError(left.pop(0), "failed")
        return b"content"

    assert rereads.read(read) == b"content"
    return rereads


def test_only_what_may_pass_is_read_again() -> None:
    assert failures(errno.EIO).failed == 1
    assert failures().failed == 0
    for codes in ((errno.ENODEV,), (errno.EIO, errno.EIO)):
        with pytest.raises(OSError, match="failed"):
            failures(*codes)


@pytest.mark.parametrize(
    ("reads", "found", "differing"),
    [("aa", b"a", 0), ("aba", b"a", 1), ("abb", b"b", 1), ("abc", None, 1)],
)
def test_two_equal_reads_are_believed(reads: str, found: bytes | None, differing: int) -> None:
    rereads, left = Rereads(), list(reads)
    assert rereads.read_twice(lambda: left.pop(0).encode()) == found
    assert (left, rereads.differing) == ([], differing)
