"""Whether a device holds an image, by the tools of its filesystems and by counting bytes."""

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builders import BuiltImage, ExpectedPartition, run
from ext4_trees import free_by_dumpe2fs
from fat_reader import _Reader

from balenaflash.units import KIB, Extent

BLOCK = 4 * KIB


def free_extents(built: BuiltImage, image: Path) -> list[Extent]:
    """What dumpe2fs and the tests' own reader of FAT call free, ascending.

    ``built`` tells where the filesystems of ``image`` are.
    """
    found: list[Extent] = []
    for partition in sorted(built.partitions, key=lambda each: each.extent):
        if partition.filesystem == "ext4":
            extent = partition.extent
            found += free_by_dumpe2fs(image, offset=extent.start, size=extent.size)
        elif partition.filesystem == "vfat":
            found += _free_in_fat(image, partition)
    return merged(found)


def merged(extents: list[Extent]) -> list[Extent]:
    """Neighbours in one piece."""
    runs: list[Extent] = []
    for extent in extents:
        start = runs.pop().start if runs and runs[-1].end == extent.start else extent.start
        runs.append(Extent(start, extent.end))
    return runs


def whole_blocks(extents: list[Extent]) -> list[Extent]:
    """The blocks of 4 KiB wholly inside each; only such may be left as they are."""
    inner = [Extent(-(-each.start // BLOCK) * BLOCK, each.end // BLOCK * BLOCK) for each in extents]
    return [each for each in inner if each.size > 0]


def _free_in_fat(image: Path, partition: ExpectedPartition) -> Iterator[Extent]:
    start = partition.extent.start
    with image.open("rb") as file:
        file.seek(start)
        reader = _Reader(file.read(partition.extent.size))
    for cluster in range(2, reader.read().cluster_count + 2):
        if reader.table[cluster] == 0:
            first = start + reader.data_start + (cluster - 2) * reader.cluster_size
            yield Extent(first, first + reader.cluster_size)


def differing_bytes(image: Path, device: Path, free: list[Extent]) -> list[Extent]:
    """Where ``device`` is not as ``image`` outside of ``free``."""
    size, position, found = image.stat().st_size, 0, []
    with image.open("rb") as one, device.open("rb") as other:
        for extent in (*free, Extent(size, size)):
            one.seek(position)
            other.seek(position)
            length = extent.start - position
            if one.read(length) != other.read(length):
                found.append(Extent(position, extent.start))
            position = extent.end
    return found


def bytes_written(node: Path) -> int:
    """Since the device is there, by the kernel: sectors of 512 bytes, Documentation/block/stat."""
    return int(Path("/sys/block", node.name, "stat").read_text().split()[6]) * 512


def compress(image: Path) -> Path:
    """The image as gzip."""
    packed = image.with_name(f"{image.name}.gz")
    with image.open("rb") as plain, gzip.open(packed, "wb", 1) as file:
        shutil.copyfileobj(plain, file, 1 << 20)
    return packed


def assert_sound(built: BuiltImage, image: Path, device: Path, folder: Path) -> None:
    """Every filesystem of ``device`` is clean, and each file in it is as in ``image``."""
    folder.mkdir()
    for partition in built.partitions:
        if partition.filesystem is None:
            continue
        offset = partition.extent.start
        if partition.filesystem == "ext4":
            run("e2fsck", "-fn", f"{device}?offset={offset}")
        else:
            part = folder / "part"
            command = ["dd", f"if={device}", f"of={part}", "bs=1M", "status=none"]
            command += ["iflag=skip_bytes,count_bytes", "conv=sparse"]
            command += [f"skip={offset}", f"count={partition.extent.size}"]
            subprocess.run(command, check=True)
            run("fsck.vfat", "-n", part)
        with (
            _shown(image, partition, folder / "image") as one,
            _shown(device, partition, folder / "device") as other,
        ):
            assert list(one.iterdir()), f"{partition.label}: nothing to compare"
            run("diff", "--recursive", "--no-dereference", one, other)


@contextmanager
def _shown(source: Path, partition: ExpectedPartition, point: Path) -> Iterator[Path]:
    """The files of a partition: mounted, or copied out of FAT, which some kernels lack."""
    offset, size = partition.extent.start, partition.extent.size
    point.mkdir()
    if partition.filesystem == "vfat":
        run("mcopy", "-s", "-n", "-i", f"{source}@@{offset}", "::/*", point)
        yield point
        shutil.rmtree(point)
        return
    options = f"ro,noload,loop,offset={offset},sizelimit={size}"
    subprocess.run(["mount", "-t", "ext4", "-o", options, source, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()
