"""What a slow or a failing target costs the others that are written at the same time.

Run it as root from a checkout: ``python tests/benchmarks/slow_target.py``. Three devices in memory,
as slow as cards, are written alone, then beside one of a quarter of their speed, then beside one
that fails with EIO half way. The table has the time of the slowest of the three, medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from beds import READ_BPS, WRITE_BPS, padded
from measuring import MIB, ROOT, cache, make_image

sys.path.insert(0, str(ROOT / "tests" / "support"))

from faultdev import FaultDevice, write_error

FAST = 3
SLOWER = 4
"""How many times slower the slow one is."""


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, nargs="?", help="raw (default: one is made)")
    parser.add_argument("--size", type=int, default=512, help="MiB of an image that is made")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with ExitStack() as stack:
        image = options.image
        if image is None:
            image = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=".")), "image")
            make_image(image, options.size * MIB)
        size = padded(image.stat().st_size)
        disks = [stack.enter_context(FaultDevice(size)) for _ in range(FAST + 1)]
        times: dict[str, list[float]] = {name: [] for name in COMPANIES}
        for _ in range(options.runs):
            for name, prepare in COMPANIES.items():
                times[name].append(_slowest_of_the_fast(image, disks, prepare))
    alone = statistics.median(times["alone"])
    print("| three targets | wall s | to alone |\n|---|---|---|")
    for name, each in times.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.2f} | {median / alone:.3f} |")


def _alone(_disk: FaultDevice) -> bool:
    return False


def _slow(disk: FaultDevice) -> bool:
    disk.set(write_bps=WRITE_BPS / SLOWER, read_bps=READ_BPS / SLOWER)
    return True


def _failing(disk: FaultDevice) -> bool:
    disk.set(
        write_bps=WRITE_BPS, read_bps=READ_BPS, faults=[write_error(disk.size // 2, disk.size)]
    )
    return True


COMPANIES: dict[str, Callable[[FaultDevice], bool]] = {
    "alone": _alone,
    "beside a slow one": _slow,
    "beside one that fails": _failing,
}
"""Each prepares the fourth device, and says whether it is written at all."""


def _slowest_of_the_fast(
    image: Path, disks: Sequence[FaultDevice], prepare: Callable[[FaultDevice], bool]
) -> float:
    """Seconds of writing and reading back, by the program's own report.

    Raises:
        SystemExit: one of the three was not written, or did not read back equal.
    """
    for disk in disks:
        # What was written before must not be taken for what is written now.
        disk.set()
        disk.fill(b"\xff" * MIB, disk.size // 2)
        subprocess.run(["blockdev", "--flushbufs", disk.node], check=True)
        disk.set(write_bps=WRITE_BPS, read_bps=READ_BPS)
    used = disks if prepare(disks[-1]) else disks[:-1]
    cache(image)
    command = [sys.executable, "-m", "balenaflash", "write", "--json", "-q", "--yes", str(image)]
    answer = subprocess.run(
        [*command, *(str(disk.node) for disk in used)],
        capture_output=True,
        check=False,  # the one that fails is meant to
        cwd=ROOT,
        env=os.environ,
    )
    targets = json.loads(answer.stdout)["result"]["targets"]
    fast = {str(disk.node) for disk in disks[:FAST]}
    took: list[float] = []
    for target in targets:
        if target["target"] in fast:
            if target["verify_seconds"] is None:
                raise SystemExit(f"{target['target']} was not written: {answer.stderr!r}")
            took.append(target["write_seconds"] + target["verify_seconds"])
    return max(took)


if __name__ == "__main__":
    main()
