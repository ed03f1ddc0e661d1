"""The free bytes of an image as other programs find them."""

from collections.abc import Iterator

from builders import BuiltImage
from ext4_trees import free_by_dumpe2fs
from fat_reader import _Reader

from balenaflash.units import Extent


def free_by_others(built: BuiltImage) -> list[Extent]:
    """The free ranges of the image by other tools, adjacent ones in one piece."""
    content = built.path.read_bytes()
    found: list[Extent] = []
    for partition in sorted(built.partitions, key=lambda each: each.extent):
        if partition.filesystem == "ext4":
            extent = partition.extent
            found += free_by_dumpe2fs(built.path, offset=extent.start, size=extent.size)
        elif partition.filesystem == "vfat":
            found += free_by_fat_reader(content, partition.extent)
    return merged(found)


def free_by_fat_reader(content: bytes, extent: Extent) -> Iterator[Extent]:
    reader = _Reader(content[extent.start : extent.end])
    volume = reader.read()
    used = {cluster for stored in volume.entries.values() for cluster in stored.clusters}
    for cluster in range(2, volume.cluster_count + 2):
        if reader.table[cluster] == 0:
            assert cluster not in used
            start = extent.start + reader.data_start + (cluster - 2) * volume.cluster_size
            yield Extent(start, start + volume.cluster_size)


def merged(extents: list[Extent]) -> list[Extent]:
    result: list[Extent] = []
    for extent in extents:
        if result and result[-1].end == extent.start:
            result.append(Extent(result.pop().start, extent.end))
        else:
            result.append(extent)
    return result
