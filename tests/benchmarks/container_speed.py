"""The same image in every container: looking into it, writing and verifying it, beside the peers.

Run it as root from a checkout: ``python tests/benchmarks/container_speed.py [FOLDER]``. FOLDER
holds ``raw.img`` and, as far as they are there, ``raw.img.gz``, ``.xz``, ``.bz2``, ``.zst`` and
``raw.zip``; what is missing is made. The peer of a container is the fastest decompressor that is
installed, piped to dd with direct I/O. Runs are interleaved; the table has medians.
"""

import argparse
import hashlib
import shlex
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from beds import device
from measuring import MIB, OURS, Cost, cache, make_image, measure, medians

SIZE = 1200 * MIB
CONTAINERS = {
    "raw": ("raw.img", None, ["cat {image}"]),
    "gzip": ("raw.img.gz", "pigz -k {raw}", ["igzip -dc {image}", "pigz -dc {image}"]),
    "xz": ("raw.img.xz", "xz -T0 -3 -k {raw}", ["xz -T0 -dc {image}"]),
    "bzip2": ("raw.img.bz2", "lbzip2 -k {raw}", ["lbzip2 -dc {image}", "bzip2 -dc {image}"]),
    "zstd": ("raw.img.zst", "zstd -q -k {raw}", ["zstd -q -dc {image}"]),
    "zip": ("raw.zip", "zip -q -j {image} {raw}", ["bsdtar -xOf {image}", "unzip -p {image}"]),
}
"""Name to file, the command that makes it, and the peers' commands, the fastest first."""


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="one container")
    options = parser.parse_args()
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd()))
        folder = options.folder or Path(name)
        raw = folder / "raw.img"
        if not raw.exists():
            make_image(raw, SIZE)
        wanted = digest(raw)
        node = stack.enter_context(device(Path(name), raw.stat().st_size))
        print("| container | command | wall s | peer s | ratio | CPU s | peak MiB | device |")
        print("|---|---|---|---|---|---|---|---|")
        for container in CONTAINERS:
            if options.only in {None, container}:
                compare(container, folder, node, wanted, options.runs)


def compare(container: str, folder: Path, node: Path, wanted: str, runs: int) -> None:
    """Print the rows of one container."""
    file, make, peers = CONTAINERS[container]
    image, raw = folder / file, folder / "raw.img"
    if make is not None and not image.exists():
        subprocess.run(["bash", "-euc", make.format(image=image, raw=raw)], check=True)
    peer = next(each for each in peers if shutil.which(each.split()[0])).format(
        image=shlex.quote(str(image))
    )
    size = raw.stat().st_size
    to_device = f"{peer} | dd of={node} bs=4M iflag=fullblock oflag=direct conv=fsync status=none"
    compared = f"blockdev --flushbufs {node}; {peer} | cmp -n {size} - {node}"
    pairs = {
        "inspect": (f"{OURS} inspect -q {image}", f"{peer} | dd of=/dev/null bs=4M status=none"),
        "config get": (
            f"{OURS} config get {image} deviceType",
            f"{peer} | dd of=/dev/null bs=4M status=none",
        ),
        "write": (f"{OURS} write -q --yes --no-verify {image} {node}", to_device),
        "write --all": (f"{OURS} write -q --yes --all --no-verify {image} {node}", to_device),
        "write, read back": (f"{OURS} write -q --yes {image} {node}", f"{to_device}; {compared}"),
        "verify": (f"{OURS} verify -q {image} {node}", compared),
    }
    for command, (ours, theirs) in pairs.items():
        costs: dict[str, list[Cost]] = {ours: [], theirs: []}
        for _ in range(runs):
            for each in (theirs, ours):
                cache(image)
                costs[each].append(measure(each, node))
        mine, other = medians(costs[ours]), medians(costs[theirs])
        right = ""
        if command == "write --all":
            right = "equal" if digest(node, size) == wanted else "WRONG"
        print(
            f"| {container} | {command} | {mine.wall:.2f} | {other.wall:.2f} "
            f"| {other.wall / mine.wall:.2f} | {mine.cpu:.2f} | {mine.peak:.0f} | {right} |",
            flush=True,
        )


def digest(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of the first bytes of a device."""
    if size is None:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    command = f"blockdev --flushbufs {path}; head -c {size} {path} | sha256sum"
    found = subprocess.run(["bash", "-euc", command], check=True, capture_output=True, text=True)
    return found.stdout.split()[0]


if __name__ == "__main__":
    main()
