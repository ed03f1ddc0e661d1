"""What balenaOS means by an image: boot partition, root filesystem, and the facts in them.

The names come from meta-balena v8.0.2 (``image_types_balena.bbclass``, ``image-balena.bbclass``).
"""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, TypeVar

from balenaflash.balena.settings import parse_settings
from balenaflash.errors import EditError, ImageError
from balenaflash.formats.ext4.volume import Ext4Volume
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.filesystems import Filesystem, recognise_filesystem
from balenaflash.formats.partitions.model import Partition, PartitionKind, PartitionTable
from balenaflash.source.base import Source
from balenaflash.units import KIB, MIB, format_size

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
    filesystem = recognise_filesystem(source, partition.extent)
    return filesystem.label if filesystem else None


_MAX_FILE_SIZE = MIB  # of a file that is parsed; config.json has a few KiB
_MAX_DEPTH = 64  # of nested JSON; config.json has four levels

_T = TypeVar("_T")


class Documents:
    """Small files of the boot partition, with a warning for each that cannot be used."""

    def __init__(self, volume: FatVolume) -> None:
        self._volume = volume
        self.warnings: list[str] = []

    def text(self, path: str) -> str | None:
        """The UTF-8 content of a file; ``None`` if it is missing or not to be used."""
        return self._parsed(path, lambda data: data.decode("utf-8"))

    def json_object(self, path: str) -> dict[str, object] | None:
        """The JSON object in a file; ``None`` if it is missing or not to be used."""
        return self._parsed(path, _parse_json_object)

    def assignments(self, path: str) -> dict[str, str]:
        """The ``NAME=value`` lines of a file; none if it is missing or not to be used."""
        return self._parsed(path, _parse_assignments) or {}

    def _parsed(self, path: str, parse: Callable[[bytes], _T]) -> _T | None:
        entry = self._volume.find(path)
        if entry is None:
            return None
        if entry.size > _MAX_FILE_SIZE:
            self.warnings.append(f"{path} is not read: it has {format_size(entry.size)}.")
            return None
        try:
            return parse(self._volume.read_file(path))
        except (ImageError, EditError) as error:
            self.warnings.append(f"{path} cannot be read: {error}")
        except UnicodeDecodeError as error:
            self.warnings.append(f"{path} is not UTF-8 text, at byte {error.start}.")
        except (ValueError, RecursionError) as error:
            self.warnings.append(f"{path} is not valid: {error}")
        return None


def _parse_json_object(data: bytes) -> dict[str, object]:
    """A JSON object that can be walked, printed and written again.

    Raises:
        ValueError: it is something else, or holds what cannot be stored as UTF-8.
        RecursionError: it is nested too deeply.
    """
    content: object = json.loads(
        data.decode("utf-8"),
        parse_constant=_refuse_constant,
        object_pairs_hook=_refuse_doubled,
    )
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 -- the content is at fault
    level: list[object] = [content]
    for _ in range(_MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            break
    else:
        raise RecursionError(f"it is nested more than {_MAX_DEPTH} levels deep")
    # "\ud800" alone is allowed by the grammar of JSON, and is no text.
    json.dumps(content, ensure_ascii=False).encode("utf-8")
    return content


def _children(value: object) -> Iterable[object]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


def _refuse_doubled(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; its readers disagree on which of two equal keys counts."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {doubled!r} occurs twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_assignments(data: bytes) -> dict[str, str]:
    """``NAME=value`` lines as in os-release(5); lines that are none are left out."""
    values = {}
    for line in data.decode("utf-8").splitlines():
        name, equals, value = line.partition("=")
        try:
            words = shlex.split(value)
        except ValueError:  # a quote without its end
            continue
        if equals and len(words) == 1:
            values[name.strip()] = words[0]
    return values


BOOT_LABELS = ("resin-boot", "flash-boot", "balena-boot", "resin-conf", "flash-conf")
"""Names of the boot partition, in the order of balena-config-json; the last two are resinOS 1.x."""

CONFIG_PATH = "/config.json"
_CONFIG_LABELS = ("resin-conf", "flash-conf", "config")
"""Names of the partition that holds config.json alone, in resinOS 1.x."""

DEVICE_TYPE_PATH = "/device-type.json"
FINGERPRINT_PATHS = ("/balenaos.fingerprint", "/resinos.fingerprint")
_OS_RELEASE_PATH = "/os-release"
_IMAGE_NAME_PATH = "/image-version-info"
_FLASHER_LABELS = frozenset({"flash-boot", "flash-conf"})
_CLONE_VOLUME_ID = "BDEF-"
_CLONE_UUID = "ba1eadef-"


class ImageKind(StrEnum):
    """What an image does when a board starts from it."""

    RAW = "raw"
    """It runs."""

    FLASHER = "flasher"
    """It writes the raw image it carries to the board's internal storage."""


@dataclass(frozen=True, slots=True)
class BootPartition:
    """The boot partition, and why it is the one."""

    partition: Partition
    filesystem: Filesystem

    reason: str
    """A sentence."""

    warnings: tuple[str, ...] = ()

    def open(self, source: Source) -> FatVolume:
        """The volume in it; errors as ``FatVolume.open``."""
        volume = FatVolume.open(source, self.partition.extent)
        volume.partition_name = self.partition.name
        return volume


@dataclass(frozen=True, slots=True)
class BalenaFacts:
    """What the boot partition tells of an image; ``None`` is what it does not tell."""

    kind: ImageKind | None
    slug: str | None
    """Device type, such as ``raspberrypi4-64``."""

    name: str | None
    arch: str | None
    machine: str | None
    """Yocto machine; often, and not always, the slug."""

    os_version: str | None
    """Flasher images keep it in their root filesystem only."""

    image_name: str | None
    config: Mapping[str, object] | None
    """Content of config.json with its secrets; ``None`` also where it is not valid."""

    fingerprint_present: bool
    is_clone: bool
    """Whether the disk this image was taken from has booted: same uuid and keys."""

    warnings: tuple[str, ...] = ()


def find_boot_partition(source: Source, table: PartitionTable) -> BootPartition:
    """The partition that holds config.json, found by name and content.

    Its number differs from board to board, and boards carry other FAT partitions before it, so
    the order is: a name or label in ``BOOT_LABELS``; the FAT partition that holds
    ``/device-type.json``; partition 1, with a warning, as balena-config-json does.

    Raises:
        ImageError: no FAT partition can be the one (``boot-partition-missing``).
    """
    candidates = _find_fat_partitions(source, table)
    found = (
        _find_by_label(candidates)
        or _find_by_content(source, candidates)
        or _assume_first(candidates)
    )
    if found is None:
        raise ImageError(
            f"{source.name}: has no balenaOS boot partition: {_describe_search(table, candidates)}",
            code="boot-partition-missing",
            hint="Is this an image of balenaOS? Its boot partition is a FAT named resin-boot.",
        )
    return found


def find_config_elsewhere(
    source: Source, table: PartitionTable, boot: BootPartition
) -> Partition | None:
    """The partition in which resinOS 1.x keeps config.json, apart from its boot partition.

    ``None`` where there is none, or where the boot partition is that one.

    Raises:
        ImageError: the image cannot be read.
    """
    for partition in sorted(table.partitions, key=lambda each: each.extent):
        if partition.kind is PartitionKind.EXTENDED or partition == boot.partition:
            continue
        filesystem = recognise_filesystem(source, partition.extent)
        if filesystem is None:
            continue
        candidate = _Candidate(partition, filesystem)
        if any(map(candidate.is_called, _CONFIG_LABELS)) and _holds_config(source, candidate):
            return partition
    return None


def _holds_config(source: Source, candidate: "_Candidate") -> bool:
    extent = candidate.partition.extent
    try:
        if candidate.filesystem.type == "vfat":
            return FatVolume.open(source, extent).find(CONFIG_PATH) is not None
        if candidate.filesystem.type in {"ext2", "ext3", "ext4"}:
            return Ext4Volume.open(source, extent).find(CONFIG_PATH) is not None
    except ImageError:
        return False  # one too damaged to look into
    return False


def is_cloned(filesystem: Filesystem) -> bool:
    """Whether balenaOS has marked this filesystem at a boot, by the UUID it sets then."""
    identifier = filesystem.uuid or ""
    return identifier.startswith((_CLONE_VOLUME_ID, _CLONE_UUID))


def read_facts(volume: FatVolume, boot: BootPartition) -> BalenaFacts:
    """What the files of the boot partition tell.

    A file that is missing leaves its facts unknown; one that is not valid adds a warning.
    """
    documents = Documents(volume)
    device_type = documents.json_object(DEVICE_TYPE_PATH) or {}
    yocto = device_type.get("yocto")
    machine = yocto.get("machine") if isinstance(yocto, dict) else None
    os_release = documents.assignments(_OS_RELEASE_PATH)
    image_name = (documents.text(_IMAGE_NAME_PATH) or "").strip()
    config = documents.json_object(CONFIG_PATH)
    if config is None and not volume.find(CONFIG_PATH):
        documents.warnings.append(f"{CONFIG_PATH} is missing from the boot partition.")
    return BalenaFacts(
        kind=find_kind(volume, documents.warnings),
        slug=_text_or_none(device_type.get("slug")) or os_release.get("SLUG"),
        name=_text_or_none(device_type.get("name")),
        arch=_text_or_none(device_type.get("arch")),
        machine=_text_or_none(machine) or os_release.get("MACHINE"),
        os_version=os_release.get("VERSION"),
        image_name=image_name or None,
        config=config,
        fingerprint_present=any(volume.find(path) is not None for path in FINGERPRINT_PATHS),
        is_clone=is_cloned(boot.filesystem),
        warnings=tuple(documents.warnings),
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    partition: Partition
    filesystem: Filesystem

    def is_called(self, label: str) -> bool:
        """Whether the GPT or the FAT gives it that name; Windows writes labels in capitals."""
        return label in {(self.partition.name or ""), (self.filesystem.label or "").casefold()}


def _find_fat_partitions(source: Source, table: PartitionTable) -> tuple[_Candidate, ...]:
    """Those that may be the one; of a stream only up to the first that is called so.

    To see the others all of it would have to be decoded.
    """
    found: list[_Candidate] = []
    for partition in sorted(table.partitions, key=lambda each: each.extent):
        if partition.kind is PartitionKind.EXTENDED:
            continue
        filesystem = recognise_filesystem(source, partition.extent)
        if filesystem is None or filesystem.type != "vfat":
            continue
        candidate = _Candidate(partition, filesystem)
        found.append(candidate)
        if not source.seekable and any(map(candidate.is_called, BOOT_LABELS)):
            break
    return tuple(sorted(found, key=lambda each: each.partition.number))


def _find_by_label(candidates: tuple[_Candidate, ...]) -> BootPartition | None:
    for label in BOOT_LABELS:
        called = [each for each in candidates if each.is_called(label)]
        if called:
            first, *others = called
            numbers = ", ".join(str(each.partition.number) for each in others)
            warnings = (
                (f"Partition {numbers} is called {label} too; the first one is used.",)
                if others
                else ()
            )
            by_name = first.partition.name == label
            what = "Its name in the GPT" if by_name else "The label of its filesystem"
            reason = f"{what} is {label}."
            return BootPartition(first.partition, first.filesystem, reason, warnings)
    return None


def _find_by_content(source: Source, candidates: tuple[_Candidate, ...]) -> BootPartition | None:
    for candidate in candidates:
        try:
            volume = FatVolume.open(source, candidate.partition.extent)
            holds = volume.find(DEVICE_TYPE_PATH) is not None
        except ImageError:
            continue  # a FAT too damaged to look into is not the one that is looked for
        if holds:
            reason = f"It holds {DEVICE_TYPE_PATH}, and no partition has a known name."
            return BootPartition(candidate.partition, candidate.filesystem, reason)
    return None


def _assume_first(candidates: tuple[_Candidate, ...]) -> BootPartition | None:
    for candidate in candidates:
        if candidate.partition.number == 1:
            return BootPartition(
                candidate.partition,
                candidate.filesystem,
                "It is partition 1, and no partition has a known name or file.",
                ("The boot partition is a guess: nothing in it says that it is balenaOS's.",),
            )
    return None


def _describe_search(table: PartitionTable, candidates: tuple[_Candidate, ...]) -> str:
    if not candidates:
        return f"none of its {len(table.partitions)} partitions is a FAT"
    numbers = ", ".join(str(each.partition.number) for each in candidates)
    return f"its FAT (partition {numbers}) has neither a known name nor {DEVICE_TYPE_PATH}"


_FLAG_FILES = {"/balena-image-flasher": ImageKind.FLASHER, "/balena-image": ImageKind.RAW}
"""Empty but for "DO NOT REMOVE THIS FILE"."""


def find_kind(volume: FatVolume, warnings: list[str]) -> ImageKind | None:
    """What an image with this boot partition is; a sentence for what is odd goes to ``warnings``.

    It is known by the flag file. Images older than those have a name or label that tells.
    """
    names = {volume.partition_name, (volume.label or "").casefold()}
    by_label = None if _FLASHER_LABELS.isdisjoint(names) else ImageKind.FLASHER
    flags = [kind for path, kind in _FLAG_FILES.items() if volume.find(path) is not None]
    if len(flags) > 1:
        warnings.append("The boot partition is flagged both as raw image and as flasher.")
        return by_label
    if flags and by_label and flags[0] is not by_label:
        warnings.append(f"The boot partition is named as a flasher's, and flagged as {flags[0]}.")
    return flags[0] if flags else by_label


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
