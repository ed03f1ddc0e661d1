"""A file of 1 GiB read out of an ext4 filesystem, by ours and by debugfs.

Run it from a checkout: ``python tests/benchmarks/ext4_speed.py [DIRECTORY]``. The filesystem is
made in DIRECTORY, which needs 4 GiB. Runs are interleaved; read ratios, not seconds.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1 << 30
ROUNDS = 5
COPY = """
import sys
from pathlib import Path
from balenaflash.units import Extent
from balenaflash.formats.ext4.volume import Ext4File
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.source.base import open_source

with open_source(Path(sys.argv[1])) as source, open(sys.argv[2], "wb") as out:
    volume = Ext4Volume.open(source, Extent(0, source.size))
    file = Ext4File(volume, volume.find("/file"), "the file")
    buffer = memoryview(bytearray(4 << 20))
    for offset in range(0, file.size, len(buffer)):
        part = buffer[: file.size - offset]
        file.readinto(offset, part)
        out.write(part)
"""


def build(directory: Path) -> Path:
    """A filesystem with one file of random bytes."""
    tree, image = directory / "tree", directory / "image"
    tree.mkdir()
    with Path("/dev/urandom").open("rb") as noise, (tree / "file").open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(noise.read(1 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, image, "1300m"], check=True)
    return image


def main() -> None:
    """Print the median time of each and the memory of ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().directory) as place:
        directory = Path(place)
        image, out = build(directory), directory / "out"
        commands = {
            "balenaflash": [sys.executable, "-c", COPY, str(image), str(out)],
            "debugfs dump": ["debugfs", "-R", f"dump /file {out}", str(image)],
        }
        times: dict[str, list[float]] = {label: [] for label in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                out.unlink(missing_ok=True)
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
                times[name].append(time.perf_counter() - start)
                subprocess.run(["cmp", out, directory / "tree" / "file"], check=True)
        ours = statistics.median(times["balenaflash"])
        for label, taken in times.items():
            median = statistics.median(taken)
            sys.stdout.write(f"{label:14} {median:6.2f} s  {median / ours:5.2f}\n")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sys.stdout.write(f"largest of the processes: {peak >> 10} MiB\n")


if __name__ == "__main__":
    main()
