"""The root filesystem of balenaOS, where it tells what the boot partition does not."""

from balenaflash.extent import KIB
from balenaflash.image.ext4.volume import Ext4Volume
from balenaflash.image.filesystems import probe
from balenaflash.image.shell_settings import parse_settings
from balenaflash.image.source import Source
from balenaflash.image.table.model import Partition, PartitionKind, PartitionTable

OS_RELEASE_PATH = "/etc/os-release"

_LABELS = frozenset({"resin-rootA", "flash-rootA", "resin-root", "flash-root"})
"""Of GPT or filesystem; the latter two until resinOS 1.x."""

_MAX_OS_RELEASE_SIZE = 64 * KIB  # it has about 1 KiB


def find_root(source: Source, table: PartitionTable) -> Partition | None:
    """The first partition of a root filesystem, by its name in the GPT, else by its label."""
    for partition in table.partitions:
        if partition.kind is PartitionKind.EXTENDED:
            continue
        if (partition.name or _label(source, partition)) in _LABELS:
            return partition
    return None


def read_os_release(source: Source, root: Partition) -> dict[str, str]:
    """What ``/etc/os-release`` sets (os-release(5)), through links; nothing where it is missing.

    Raises:
        ImageError: the filesystem or the file cannot be read.
    """
    volume = Ext4Volume.open(source, root.extent)
    entry = volume.find(OS_RELEASE_PATH)
    if entry is None:
        return {}
    name = f"{source.name}: {OS_RELEASE_PATH} in partition {root.number}"
    return parse_settings(volume.read_file(entry, _MAX_OS_RELEASE_SIZE), name)


def _label(source: Source, partition: Partition) -> str | None:
    filesystem = probe(source, partition.extent)
    return filesystem.label if filesystem else None
