"""How the cost of writing and reading back grows with the image, its content and the targets.

Run it as root from a checkout: ``python tests/benchmarks/cost_growth.py``. Images are sparse files
that are made, devices are loop devices with direct I/O over allocated files. Each table has one
thing that grows; the others stay at 1 GiB, one target and 256 MiB of files. Medians.

A minute's worth: ``--only size --sizes 0.5,1 --runs 1``.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from beds import loop_over, padded
from measuring import MIB, OURS, cache, make_image, measure, medians, warm_up

GIB = 1024 * MIB
SIZE = GIB
CONTENT = 256 * MIB
DATA_SHARE = 0.75
"""Of an image of 1 GiB, what its data partition can take in files."""


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_argument
    names("--only", choices=SERIES, action="append", help="a table (default: all)")
    names("--place", type=Path, default=Path.cwd(), help="folder for images and devices")
    names("--sizes", type=_numbers, default=[0.5, 1, 2, 4, 8, 16], help="GiB, commas between")
    names("--targets", type=_numbers, default=[1, 2, 4, 8, 16], help="numbers of targets")
    names("--fills", type=_numbers, default=[5, 25, 50, 75, 100], help="per cent")
    names("--runs", type=int, default=3)
    options = parser.parse_args()
    for series in options.only or SERIES:
        print(f"\n| {series} | wall s | CPU s | MiB | written | read |\n|---|---|---|---|---|---|")
        SERIES[series](options)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _sizes(options: argparse.Namespace) -> None:
    for size in options.sizes:
        with _image(options.place, int(size * GIB), CONTENT) as image:
            _measure(f"{size:g} GiB", image, 1, options)


def _targets(options: argparse.Namespace) -> None:
    with _image(options.place, SIZE, CONTENT) as image:
        for count in options.targets:
            _measure(f"{count:g}", image, int(count), options)


def _fills(options: argparse.Namespace) -> None:
    for fill in options.fills:
        with _image(options.place, SIZE, int(SIZE * DATA_SHARE * fill / 100)) as image:
            _measure(f"{fill:g} %", image, 1, options)


SERIES: dict[str, Callable[[argparse.Namespace], None]] = {
    "size": _sizes,
    "targets": _targets,
    "fill": _fills,
}


@contextmanager
def _image(place: Path, size: int, content: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=place) as name:
        path = Path(name, "image")
        make_image(path, size, content)
        yield path


def _measure(label: str, image: Path, count: int, options: argparse.Namespace) -> None:
    """Print the row of one image."""
    size = padded(image.stat().st_size)
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(_device(image.with_name(f"disk{n}"), size)) for n in range(count)
        ]
        warm_up(image, nodes[0])
        command = f"{OURS} write -q --yes {image} {' '.join(map(str, nodes))}"
        costs = []
        for _ in range(options.runs):
            cache(image)
            costs.append(measure(command, *nodes))
    cost = medians(costs)
    print(
        f"| {label} | {cost.wall:.2f} | {cost.cpu:.2f} | {cost.peak:.0f} | {cost.written:.0f} "
        f"| {cost.read:.0f} |",
        flush=True,
    )


@contextmanager
def _device(path: Path, size: int) -> Iterator[Path]:
    """A loop device over a file that has its room on the disk, and nothing in it."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    with loop_over(path) as node:
        yield node


if __name__ == "__main__":
    main()
