"""Ours and the peers that are installed, writing the same image to the same devices.

Run it as root from a checkout: ``python tests/benchmarks/write_speed.py``. It makes an image, its
compressed forms and loop devices over files that are wholly allocated and full of 0xFF, and prints
a table in Markdown: medians, ratios to ours, and then the limits that these results can be held
to. Runs are interleaved, so that a busy moment of the machine meets all. Read ratios, not seconds.

Peers are found on PATH (dd, cmp, xxhsum, bmaptool, rpi-imager, balena, node); ETCHER_MODULES names
the node_modules folder that holds etcher-sdk. What is missing is said and left out.

A minute's worth: ``--only raw --mode read-back --tools balenaflash,cmp --runs 1``.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from beds import READ_BPS, WRITE_BPS, Bed, fast_bed, slow_bed
from limits import OURS, READ_BACK, WRITE, Case, rows
from measuring import MIB, Cost, cache, drop, make_image, measure, medians, warm_up
from peers import TOOLS, Tool, decompress, found, stand_in_for_lsblk

FILES = {
    "raw": ("raw.img", ""),
    "gz": ("raw.img.gz", "pigz -k {raw} || gzip -k {raw}"),
    "xz": ("blocks.img.xz", "xz -T0 -3 --block-size=16MiB -c {raw} > {image}"),
    "xz of one block": ("block.img.xz", "xz -T1 -3 -c {raw} > {image}"),
    "zst": ("raw.img.zst", "zstd -q -k {raw}"),
    "zip": ("raw.zip", "zip -q -j {image} {raw}"),
    "bz2": ("raw.img.bz2", "lbzip2 -k {raw} || bzip2 -k {raw}"),
}
"""Container to file, and the command that makes it."""


@dataclass(slots=True)
class Run:
    """What was asked for, and what came out."""

    options: argparse.Namespace
    folder: Path
    """Of the images."""

    work: Path
    """Of everything else; it goes afterwards."""

    results: dict[Case, dict[str, Cost]] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        return self.folder / FILES["raw"][0]

    def image(self, container: str) -> Path:
        """The image in ``container``, made if it is not there."""
        name, make = FILES[container]
        path = self.folder / name
        if not path.exists() and container == "raw":
            make_image(path, self.options.size * MIB)
        elif not path.exists():
            raw = self.image("raw")
            command = make.format(raw=shlex.quote(str(raw)), image=shlex.quote(str(path)))
            subprocess.run(["bash", "-euc", command], check=True)
        return path


def main() -> int:
    """Measure, and print."""
    options = _options()
    # Sent to the background, a script ignores Ctrl-C; the devices are to be detached all the same.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        run = Run(options, options.folder or Path(name), Path(name))
        tools = found([tool for tool in TOOLS if _is_wanted(tool.name, options.tools)])
        size = run.image("raw").stat().st_size
        speed = f"{WRITE_BPS / 1e6:g} MB/s, reading {READ_BPS / 1e6:g}"
        print(f"{size // MIB} MiB; {options.runs} runs; {speed if options.throttled else 'fast'}\n")
        print("| image | mode | targets | tool | wall s | ratio | CPU s | MiB | written | read |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for count in options.targets:
            make_bed = slow_bed if options.throttled else fast_bed
            with make_bed(run.work, size, count) as bed:
                warm_up(run.raw, bed.nodes[0])
                for container in options.only:
                    for mode in options.mode:
                        case = Case(container, mode, count, is_slow=options.throttled)
                        _compare(run, case, bed, tools)
        print("\n| limit | value | at most | holds |\n|---|---|---|---|")
        print("\n".join(rows(run.results, _floor)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = parser.add_argument
    names("--folder", type=Path, help="has raw.img and its compressed forms; missing ones are made")
    names("--place", type=Path, default=Path.cwd(), help="folder for the devices (default: here)")
    names("--size", type=int, default=1200, help="MiB of an image that is made")
    names("--only", type=_words, default=list(FILES), help=f"of {', '.join(FILES)}; commas between")
    names("--mode", type=_modes, default=[WRITE, READ_BACK], help="write, read-back")
    names("--tools", type=_words, default=[""], help="words in their names (default: all)")
    names("--targets", type=_numbers, default=[1], help="such as 1,4,16")
    names("--throttled", action="store_true", help="devices of 40 MB/s, in memory")
    names("--cold", action="store_true", help="read the image from its disk, not from memory")
    names("--runs", type=int, default=5)
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _modes(text: str) -> list[str]:
    modes = {"write": WRITE, "read-back": READ_BACK}
    try:
        return [modes[word] for word in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is neither write nor read-back") from error


def _is_wanted(name: str, words: Sequence[str]) -> bool:
    return name == OURS or any(word in name for word in words)


def _floor(cost: Cost) -> float:
    """Seconds that the slow device needs for the bytes of a run."""
    return cost.written * MIB / WRITE_BPS + cost.read * MIB / READ_BPS


def _compare(run: Run, case: Case, bed: Bed, tools: Sequence[Tool]) -> None:
    """Print the rows of one case."""
    kind = case.container.split(maxsplit=1)[0]
    commands = {
        tool.name: command
        for tool in tools
        if kind in tool.containers
        and (case.targets == 1 or tool.writes_many)
        and (command := tool.write if case.mode == WRITE else tool.read_back) is not None
    }
    words = _words_of(run, case.container, bed) if commands else {}
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    failed: dict[str, str] = {}
    prepare = drop if run.options.cold else cache
    for _ in range(run.options.runs):
        for name, command in commands.items():
            if name in failed:
                continue
            bed.refill()
            prepare(run.image(case.container))
            try:
                costs[name].append(measure(command.format(**words), *bed.nodes, meter=bed.meter))
            except subprocess.CalledProcessError as error:
                failed[name] = _last_line(error)
    found = {name: medians(each) for name, each in costs.items() if name not in failed}
    run.results[case] = found
    _print(case, found, failed)


def _words_of(run: Run, container: str, bed: Bed) -> dict[str, str | int]:
    """What the commands of tools leave open."""
    image, size = run.image(container), run.raw.stat().st_size
    bmap, stand_in = run.work / "image.bmap", run.work / "stand-in"
    if not bmap.exists():
        subprocess.run(["bmaptool", "-q", "create", run.raw, "-o", bmap], check=False)
    stand_in_for_lsblk(stand_in, bed.nodes[0], bed.size)
    quoted = Path(shlex.quote(str(image)))
    return {
        "image": str(quoted),
        "node": str(bed.nodes[0]),
        "nodes": " ".join(map(str, bed.nodes)),
        "size": size,
        "bmap": shlex.quote(str(bmap)),
        "stream": decompress(container.split(maxsplit=1)[0], quoted),
        "stand_in": shlex.quote(str(stand_in)),
    }


def _last_line(error: subprocess.CalledProcessError) -> str:
    said = error.stderr.decode(errors="replace").split("\n")
    line = next((line.strip() for line in reversed(said) if line.strip()), "")
    return f"exit status {error.returncode}: {line[-100:].replace('|', '/')}"


def _print(case: Case, found: dict[str, Cost], failed: dict[str, str]) -> None:
    start = f"| {case.container} | {case.mode} | {case.targets} "
    ours = found.get(OURS)
    for name, cost in sorted(found.items(), key=lambda item: item[1].wall):
        ratio = f"{cost.wall / ours.wall:.2f}" if ours else ""
        print(
            f"{start}| {name} | {cost.wall:.2f} | {ratio} | {cost.cpu:.2f} | {cost.peak:.0f} "
            f"| {cost.written:.0f} | {cost.read:.0f} |"
        )
    for name, reason in failed.items():
        print(f"{start}| {name} | {reason} | | | | | |")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
