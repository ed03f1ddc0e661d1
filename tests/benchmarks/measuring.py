"""What the benchmarks share: an image, and the cost of a command."""

import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
OURS = f"{sys.executable} -m balenaflash"
_COMPILED = tempfile.TemporaryDirectory(prefix="benchmark-")
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "PYTHONPYCACHEPREFIX": _COMPILED.name,
}
"""What is installed was compiled then; a checkout may be told not to keep what it compiles."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took."""

    wall: float
    """Seconds."""

    cpu: float
    """Seconds of user and system time."""

    peak: float
    """MiB of memory of the largest process."""

    written: float
    """MiB that reached the devices; what a device was told to zero counts."""

    read: float
    """MiB that were read from the devices."""


Meter = Callable[[], tuple[float, float]]
"""Gives MiB read from and MiB written to the devices so far."""


def measure(command: str, *nodes: Path, meter: Meter | None = None) -> Cost:
    """Run ``command`` in a shell once.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` is what it said, in bytes.
    """
    meter = meter or (lambda: transferred(nodes))
    before = meter()
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=ROOT,
            env=_ENVIRONMENT,
            process_group=0,
        )
        try:
            _pid, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # What it started would go on, and keep the device open.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=said.read())
    after = meter()
    return Cost(
        wall,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        after[1] - before[1],
        after[0] - before[0],
    )


def warm_up(image: Path, node: Path) -> None:
    """Have our program compiled, as it is when it is installed."""
    measure(f"{OURS} write -q -n {shlex.quote(str(image))} {node}")


def medians(costs: Sequence[Cost]) -> Cost:
    """Of each figure on its own."""
    return Cost(
        *(
            statistics.median(getattr(cost, name) for cost in costs)
            for name in ("wall", "cpu", "peak", "written", "read")
        )
    )


def transferred(nodes: Sequence[Path]) -> tuple[float, float]:
    """MiB read from and written to devices since they exist (Documentation/block/stat.rst)."""
    read = written = 0
    for node in nodes:
        fields = Path("/sys/block", node.name, "stat").read_text().split()
        read += int(fields[2]) * 512
        written += int(fields[6]) * 512
    return read / MIB, written / MIB


def cache(path: Path) -> None:
    """Have the pages of a file in memory, so that no run waits for the disk it lies on.

    In small pieces: the memory of this process would be counted as that of those it starts.
    """
    buffer = bytearray(MIB)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop(path: Path) -> None:
    """Have the pages of a file on its disk only, so that every run reads it from there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_image(path: Path, size: int, content: int | None = None) -> None:
    """An image laid out as balenaOS lays out its own, with files of this machine in it.

    A sample gives the table and the filesystems. Its data partition is made to reach the end, and
    made anew with ``content`` bytes of files, or half full.
    """
    subprocess.run(
        [sys.executable, "-m", "balenaflash", "sample", "-q", "--table", "gpt", str(path)],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    os.truncate(path, size)
    # The backup GPT goes to the new end, and the last partition is made to reach it.
    subprocess.run(
        ["sgdisk", "-e", "-d", "5", "-n", "5:0:0", "-c", "5:resin-data", path],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    table = subprocess.run(
        ["sgdisk", "-i", "5", path], check=True, capture_output=True, text=True
    ).stdout
    first, last = _sector(table, "First sector"), _sector(table, "Last sector")
    _fill_partition(path, first * 512, (last + 1 - first) * 512, content)


def _sector(table: str, name: str) -> int:
    line = next(line for line in table.splitlines() if line.startswith(name))
    return int(line.split()[2])


def _fill_partition(path: Path, offset: int, size: int, content: int | None) -> None:
    folder = path.with_name("content")
    folder.mkdir()
    room = size // 2 if content is None else content
    for file in sorted(Path("/usr/lib").rglob("*")):
        # Blocks are what fills a filesystem.
        if file.is_file() and not file.is_symlink():
            needed = -(-file.stat().st_size // 4096) * 4096
            if 0 < needed <= room:
                room -= needed
                shutil.copyfile(file, folder / f"{room}-{file.name}")
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "resin-data", "-d", str(folder)]
    command += ["-E", f"offset={offset},nodiscard", str(path), f"{size // 4096 * 4}k"]
    subprocess.run(command, check=True)
    shutil.rmtree(folder)
