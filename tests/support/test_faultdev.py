"""The device with faults does what it is told, as the kernel shows it."""

import errno
import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest
from faultdev import (
    Beyond,
    Fault,
    MakeFaultDevice,
    bit_flip,
    dropped_write,
    flush_error,
    read_error,
    write_error,
)
from loopdev import read_direct

from balenaflash.units import MIB

SIZE = 8 * MIB


def pattern(size: int) -> bytes:
    """Bytes in which each MiB differs from the others."""
    return b"".join(bytes([index + 1]) * MIB for index in range(size // MIB))


def write_direct(node: Path, data: bytes, *, flush: bool = True) -> None:
    """Write past the page cache, 1 MiB at a time, then flush."""
    descriptor = os.open(node, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as aligned:
            for offset in range(0, len(data), MIB):
                aligned[:] = data[offset : offset + MIB]
                os.pwrite(descriptor, aligned, offset)
        if flush:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_a_healthy_device_keeps_and_counts_what_is_written(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    write_direct(device.node, pattern(SIZE), flush=False)
    unflushed = device.stats()
    assert (unflushed.bytes_written, unflushed.unflushed, unflushed.flushes) == (SIZE, SIZE, 0)
    subprocess.run(["sync", device.node], check=True)
    assert (device.stats().unflushed, device.stats().flushes) == (0, 1)
    assert device.raw(0, SIZE) == read_direct(device.node)[0] == pattern(SIZE)
    assert device.stats().bytes_read == SIZE


def test_the_kernel_sees_the_size_and_the_sectors_asked_for(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE, sector_size=4096)
    answer = subprocess.check_output(["blockdev", "--getsize64", "--getss", device.node])
    assert answer.split() == [b"8388608", b"4096"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ETIMEDOUT])
def test_a_write_error_hits_its_range_alone(fault_device: MakeFaultDevice, code: int) -> None:
    device = fault_device(size=SIZE)
    device.set(faults=[write_error(5 * MIB, 5 * MIB + 512, errno=code)])
    with pytest.raises(OSError, match=os.strerror(code)):
        write_direct(device.node, pattern(SIZE))
    assert device.raw(0, 5 * MIB) == pattern(SIZE)[: 5 * MIB]
    assert device.stats().injected == 1


def test_a_fault_with_a_count_goes_away(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(faults=[write_error(count=1)])
    with pytest.raises(OSError, match="Input/output error"):
        write_direct(device.node, pattern(SIZE))
    write_direct(device.node, pattern(SIZE))
    assert device.raw(0, SIZE) == pattern(SIZE)


def test_a_read_error_hits_its_range_alone(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.fill(pattern(SIZE))
    device.set(faults=[read_error(3 * MIB, 3 * MIB + 512)])
    content, error = read_direct(device.node)
    assert error is not None
    assert error.errno == errno.EIO
    assert content == pattern(SIZE)[: 3 * MIB]


def test_a_flush_error_is_an_error_of_fsync(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(faults=[flush_error(count=1)])
    write_direct(device.node, pattern(SIZE), flush=False)
    with pytest.raises(OSError, match="Input/output error"):
        write_direct(device.node, b"")
    assert device.stats().unflushed == SIZE


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (dropped_write(2 * MIB + 1, 3 * MIB), b"\x03" + bytes(MIB - 1)),
        (bit_flip(2 * MIB + 7, mask=0x80), b"\x03" * 7 + b"\x83" + b"\x03" * (MIB - 8)),
    ],
    ids=["dropped", "flipped"],
)
def test_a_silent_fault_spoils_what_is_stored(
    fault_device: MakeFaultDevice, fault: Fault, expected: bytes
) -> None:
    device = fault_device(size=SIZE)
    device.set(faults=[fault])
    write_direct(device.node, pattern(SIZE))
    good = pattern(SIZE)
    assert device.raw(0, SIZE) == good[: 2 * MIB] + expected + good[3 * MIB :]


def test_a_bit_flipped_on_reading_is_right_on_the_medium(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.fill(pattern(SIZE))
    device.set(faults=[bit_flip(4 * MIB, on_read=True)])
    good = pattern(SIZE)
    assert read_direct(device.node)[0] == good[: 4 * MIB] + b"\x04" + good[4 * MIB + 1 :]
    assert device.raw(0, SIZE) == pattern(SIZE)


@pytest.mark.parametrize(
    ("beyond", "expected"),
    [
        (Beyond.WRAP, pattern(SIZE)[5 * MIB :] + pattern(SIZE)[3 * MIB : 5 * MIB]),
        (Beyond.DISCARD, pattern(5 * MIB)),
    ],
)
def test_a_counterfeit_card_accepts_more_than_it_holds(
    fault_device: MakeFaultDevice, beyond: Beyond, expected: bytes
) -> None:
    device = fault_device(size=SIZE)
    device.set(real_size=5 * MIB, beyond=beyond)
    write_direct(device.node, pattern(SIZE))
    assert device.raw(0, 5 * MIB) == expected
    assert device.raw(5 * MIB, 3 * MIB) == bytes(3 * MIB)
    assert read_direct(device.node)[0][: 5 * MIB] == expected


def test_what_was_not_flushed_is_lost_with_the_power(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(volatile=True)
    write_direct(device.node, pattern(SIZE)[: 4 * MIB])
    write_direct(device.node, bytes(MIB), flush=False)
    assert device.raw(0, MIB) == bytes(MIB)
    device.set()
    assert device.raw(0, SIZE) == pattern(SIZE)[: 4 * MIB] + bytes(4 * MIB)


def test_a_cache_is_lost_once_and_without_an_error(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(volatile=True, cache_lost_after=4 * MIB)
    write_direct(device.node, pattern(SIZE))
    assert device.raw(0, SIZE) == bytes(4 * MIB) + pattern(SIZE)[4 * MIB :]


def test_a_device_vanishes_after_just_so_many_bytes(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(vanish_after=2 * MIB + 4096)
    with pytest.raises(OSError, match="No such device"):
        write_direct(device.node, pattern(SIZE))
    stored, good = device.raw(0, SIZE), pattern(SIZE)
    # The kernel may cut the third MiB into requests, which then come in any order.
    assert stored[: 2 * MIB] == good[: 2 * MIB]
    assert stored.count(b"\x03") == 4096
    assert stored.count(b"\0") == SIZE - (2 * MIB + 4096)


def test_a_device_pulled_out_has_no_size(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.vanish()
    assert subprocess.check_output(["blockdev", "--getsize64", device.node]) == b"0\n"


def test_a_slow_device_takes_its_time(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.set(write_bps=20 * MIB)
    start = time.monotonic()
    write_direct(device.node, pattern(SIZE))
    # 8 MiB at 20 MiB/s, less 1 MiB of credit.
    assert time.monotonic() - start >= 0.3


def test_a_discarded_range_reads_as_zeros(fault_device: MakeFaultDevice) -> None:
    device = fault_device(size=SIZE)
    device.fill(pattern(SIZE))
    place = [f"--offset={MIB}", f"--length={MIB}"]
    subprocess.run(["blkdiscard", *place, device.node], check=True)
    assert device.raw(MIB, MIB) == bytes(MIB)
    assert device.raw(2 * MIB, 6 * MIB) == pattern(SIZE)[2 * MIB :]
    assert device.stats().discards == 1
