"""The devices that the benchmarks write to."""

import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import MIB, ROOT, Meter, transferred

sys.path.insert(0, str(ROOT / "tests" / "support"))

import loopdev
from faultdev import FaultDevice

WRITE_BPS, READ_BPS = 40e6, 90e6
"""Bytes a second of the slow device: those of a good SD card."""

_STEP = 4 * MIB


@dataclass(slots=True)
class Bed:
    """Some devices of the same size."""

    nodes: list[Path]
    size: int
    meter: Meter
    refill: Callable[[], None]
    """Fills them with 0xFF, as they were at first."""


@contextmanager
def fast_bed(folder: Path, size: int, count: int) -> Iterator[Bed]:
    """Devices as fast as the disk of ``folder``."""

    def refill() -> None:
        for number, node in enumerate(nodes):
            fill(folder / f"disk{number}", padded(size))
            subprocess.run(["blockdev", "--flushbufs", node], check=True)

    with devices(folder, size, count) as nodes:
        yield Bed(nodes, padded(size), lambda: transferred(nodes), refill)


@contextmanager
def slow_bed(_folder: Path, size: int, count: int) -> Iterator[Bed]:
    """Devices in memory, as slow as cards."""

    def meter() -> tuple[float, float]:
        # Of the medium itself, where what the device was told to zero does not count.
        stats = [each.stats() for each in slow]
        read = sum(each.bytes_read for each in stats)
        return read / MIB, sum(each.bytes_written for each in stats) / MIB

    with ExitStack() as stack:
        slow = [stack.enter_context(FaultDevice(padded(size))) for _ in range(count)]
        nodes = [each.node for each in slow]
        yield Bed(nodes, padded(size), meter, lambda: _make_slow(slow))


def _make_slow(slow: Sequence[FaultDevice]) -> None:
    block = b"\xff" * MIB
    for each in slow:
        each.set()
        for offset in range(0, each.size, MIB):
            each.fill(block, offset)
        subprocess.run(["blockdev", "--flushbufs", each.node], check=True)
        each.set(write_bps=WRITE_BPS, read_bps=READ_BPS)


@contextmanager
def device(folder: Path, size: int) -> Iterator[Path]:
    """A loop device with direct I/O over a file that is wholly allocated and full of 0xFF."""
    with devices(folder, size, 1) as (node,):
        yield node


@contextmanager
def devices(folder: Path, size: int, count: int) -> Iterator[list[Path]]:
    """Loop devices with direct I/O over files that are wholly allocated and full of 0xFF."""
    with ExitStack() as stack:
        nodes = []
        for number in range(count):
            path = folder / f"disk{number}"
            fill(path, padded(size))
            nodes.append(stack.enter_context(loop_over(path)))
        yield nodes


@contextmanager
def loop_over(path: Path) -> Iterator[Path]:
    """A loop device with direct I/O over the file ``path``, which is removed afterwards."""
    try:
        node = loopdev.attach(path, direct_io=True)
        try:
            yield node
        finally:
            loopdev.detach(node, path)
    finally:
        path.unlink()


def padded(size: int) -> int:
    """``size`` rounded up to whole MiB."""
    return -(-size // MIB) * MIB


def fill(path: Path, size: int) -> None:
    """Make a file, or what a file was, ``size`` bytes of 0xFF on its disk."""
    buffer = mmap.mmap(-1, _STEP)
    buffer.write(b"\xff" * _STEP)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    try:
        for offset in range(0, size, _STEP):
            part = memoryview(buffer)[: min(_STEP, size - offset)]
            if os.pwrite(descriptor, part, offset) != len(part):
                raise SystemExit(f"{path}: no room")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
