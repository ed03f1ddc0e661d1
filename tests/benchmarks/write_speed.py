"""Ours and the peers that are installed, writing the same image to the same loop device.

Run it as root from a checkout: ``python tests/benchmarks/write_speed.py [IMAGE]``. Runs are
interleaved, so that a busy moment of the machine meets all of them; the table has medians, and
ratios to ours. Without IMAGE one of 1 GiB is made: a sample whose data partition is half full of
random bytes. Read ratios, not seconds.
"""

import argparse
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import loopdev  # noqa: E402 - found through the line above

MIB = 1 << 20
IMAGE_SIZE = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Case:
    """One way to write an image."""

    name: str
    reads_back: bool
    command: str
    """For a shell; ``{image}``, ``{node}`` and ``{size}`` are filled in."""

    program: str


CASES = (
    Case(
        "balenaflash",
        True,
        f"{sys.executable} -m balenaflash write -q --yes {{image}} {{node}}",
        "dd",
    ),
    Case(
        "balenaflash --no-verify",
        False,
        f"{sys.executable} -m balenaflash write -q --yes --no-verify {{image}} {{node}}",
        "dd",
    ),
    Case(
        "dd direct, cmp",
        True,
        "dd if={image} of={node} bs=4M oflag=direct conv=fsync status=none"
        " && blockdev --flushbufs {node} && cmp -n {size} {image} {node}",
        "dd",
    ),
    Case(
        "dd direct, sha256sum",
        True,
        "dd if={image} of={node} bs=4M oflag=direct conv=fsync status=none"
        " && sha256sum {image} && head -c {size} {node} | sha256sum",
        "dd",
    ),
    Case(
        "dd direct",
        False,
        "dd if={image} of={node} bs=4M oflag=direct conv=fsync status=none",
        "dd",
    ),
    Case("bmaptool", False, "bmaptool -q copy --nobmap {image} {node}", "bmaptool"),
    Case("rpi-imager", True, "rpi-imager --cli {image} {node}", "rpi-imager"),
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run cost."""

    wall: float
    cpu: float
    """Seconds of user and system time."""


def measure(case: Case, image: Path, node: Path) -> Measurement:
    """Run ``case`` once, with the image's pages cached and nothing else going on."""
    image.read_bytes()
    size = image.stat().st_size
    command = case.command.format(
        image=shlex.quote(str(image)), node=shlex.quote(str(node)), size=size
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(wall, cpu)


def make_image(path: Path) -> None:
    """A sample grown to ``IMAGE_SIZE`` whose new end is half random, half zero."""
    command = [sys.executable, "-m", "balenaflash", "sample", "--table", "msdos", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end < IMAGE_SIZE:
            if (end // MIB) % 32 < 16:
                file.seek(end)
                file.write(os.urandom(MIB))
            end += MIB
        file.truncate(IMAGE_SIZE)


@contextmanager
def device(folder: Path, size: int) -> Iterator[Path]:
    """A loop device with direct I/O over a file that is wholly allocated and full of 0xFF."""
    path = folder / "disk"
    with path.open("wb") as file:
        for _ in range(-(-size // MIB)):
            file.write(b"\xff" * MIB)
    node = loopdev.attach(path, direct_io=True)
    try:
        yield node
    finally:
        loopdev.detach(node, path)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    cases = [case for case in CASES if shutil.which(case.program)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        image = options.image or folder / "image"
        if options.image is None:
            make_image(image)
        with device(folder, image.stat().st_size) as node:
            results = {case.name: [measure(case, image, node)] for case in cases}
            for _ in range(options.runs):
                for case in cases:
                    results[case.name].append(measure(case, image, node))
    show(cases, results, image_size=IMAGE_SIZE if options.image is None else None)


def show(
    cases: list[Case], results: dict[str, list[Measurement]], *, image_size: int | None
) -> None:
    """Print medians without the first, warming run."""
    walls = {name: statistics.median(m.wall for m in runs[1:]) for name, runs in results.items()}
    cpus = {name: statistics.median(m.cpu for m in runs[1:]) for name, runs in results.items()}
    ours = {True: "balenaflash", False: "balenaflash --no-verify"}
    if image_size is not None:
        print(f"{image_size // MIB} MiB image, {os.cpu_count()} cores")  # noqa: T201 - a script
    print("| tool | reads back | wall s | ratio to ours | CPU s |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    for case in sorted(cases, key=lambda case: (not case.reads_back, walls[case.name])):
        ratio = walls[case.name] / walls[ours[case.reads_back]]
        row = f"| {case.name} | {'yes' if case.reads_back else 'no'} | {walls[case.name]:.2f} "
        print(f"{row}| {ratio:.2f} | {cpus[case.name]:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
