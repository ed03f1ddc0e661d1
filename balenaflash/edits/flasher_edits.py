"""The edits that a flasher makes in the boot partition of the image it installs.

They are the steps of meta-balena's ``resin-init-flasher`` (v8.0.2). A file is read from the
flasher's boot partition only when its edit is made: that volume must stay open until then.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from balenaflash.balena.image import CONFIG_PATH
from balenaflash.balena.json_text import Json, format_document
from balenaflash.edits.config.edit import read_config
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.files import (
    FileChange,
    Remove,
    is_directory,
    join,
    make_directories,
    name_of,
    parent_of,
    put_file,
    read_file,
    volume_path,
)
from balenaflash.formats.fat.volume import FatVolume

_SECURE_BOOT_SUFFIX = ".secureboot"
_EFI_SUFFIX = ".efi"
_INSTALLER_KEY = "installer"


@dataclass(frozen=True, slots=True)
class MergeDirectory:
    """Add the files of a directory to the inner directory of the same path: the splash.

    ``cp -r DIRECTORY/*`` does it, which leaves out names with a leading dot.
    """

    origin: FatVolume = field(repr=False)
    directory: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        directory = volume_path(self.directory)
        changes = [*make_directories(volume, directory)]
        for entry in self.origin.entries(directory):
            if not entry.name.startswith("."):
                changes += _copy(self.origin, entry.path, volume, join(directory, entry.name))
        return tuple(changes)

    def describe(self) -> str:
        return f"add the flasher's {volume_path(self.directory)}"


@dataclass(frozen=True, slots=True)
class ReplaceDirectory:
    """Replace the inner directory of the same name, with its content."""

    origin: FatVolume = field(repr=False)
    directory: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        directory = volume_path(self.directory)
        # `cp -r A/B INNER` copies B to the root of the inner partition, whatever its path was.
        target = join("/", name_of(directory))
        removed = [*_remove_others(self.origin, directory, volume, target)]
        return (*removed, *_copy(self.origin, directory, volume, target))

    def describe(self) -> str:
        return f"replace {volume_path(self.directory)} by the flasher's"


@dataclass(frozen=True, slots=True)
class InstallFile:
    """Copy one file to a path in the inner partition; a missing directory is created.

    The flasher itself fails at a missing directory, in the middle of its work.
    """

    origin: FatVolume = field(repr=False)
    file: str
    target: str

    signed: bool = False
    """Copy ``FILE.sig`` too, if it exists."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        file, target = volume_path(self.file), volume_path(self.target)
        changes = [
            *make_directories(volume, parent_of(target)),
            put_file(volume, target, read_file(self.origin, file)),
        ]
        if self.signed and is_file(self.origin, file + SIGNATURE_SUFFIX):
            signature = read_file(self.origin, file + SIGNATURE_SUFFIX)
            changes.append(put_file(volume, target + SIGNATURE_SUFFIX, signature))
        return tuple(changes)

    def describe(self) -> str:
        return f"put the flasher's {volume_path(self.file)} to {volume_path(self.target)}"


@dataclass(frozen=True, slots=True)
class RemoveSecureBootPrograms:
    """Remove the boot programs that only a board with secure boot and encryption starts."""

    directory: str
    """The directory of the bootloader and its configuration."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        paths = find_secure_boot_programs(volume, self.directory)
        return tuple(change for path in paths for change in Remove(path).apply(volume))

    def describe(self) -> str:
        return f"remove *{_EFI_SUFFIX}{_SECURE_BOOT_SUFFIX} from {volume_path(self.directory)}"


@dataclass(frozen=True, slots=True)
class InstallConfig:
    """Copy the flasher's config.json to the inner partition, without its key ``installer``."""

    origin: FatVolume = field(repr=False)

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        document = read_config(self.origin)
        content = {key: each for key, each in document.content.items() if key != _INSTALLER_KEY}
        if _INSTALLER_KEY in document.content:
            data = format_document(replace(document, content=content))
        else:
            data = read_file(self.origin, CONFIG_PATH)
        return (put_file(volume, CONFIG_PATH, data),)

    def describe(self) -> str:
        return f"put the flasher's {CONFIG_PATH}, without {_INSTALLER_KEY}"


@dataclass(frozen=True, slots=True)
class Installer:
    """The settings for the flasher in its config.json."""

    wants_secure_boot: bool
    """Restrict the board to signed systems, and encrypt its disk."""

    target_devices: tuple[str, ...]
    """Names that replace ``INTERNAL_DEVICE_KERNEL``; empty if it is not replaced."""


def read_installer(volume: FatVolume) -> Installer:
    """The settings in the config.json of a flasher's boot partition.

    Raises:
        ConfigError: it is missing or not valid; the flasher fails too.
    """
    section = read_config(volume).content.get(_INSTALLER_KEY)
    content: dict[str, Json] = section if isinstance(section, dict) else {}
    devices = content.get("target_devices")
    # balena's own tools sometimes write booleans as strings; a missed one would be too grave.
    wants_secure_boot = content.get("secureboot") in (True, "true")
    names = tuple(devices.split()) if isinstance(devices, str) else ()
    return Installer(wants_secure_boot, names)


def find_secure_boot_programs(volume: FatVolume, directory: str) -> tuple[str, ...]:
    """Paths of each ``NAME.efi.secureboot`` in ``directory`` that has a ``NAME.efi`` beside it."""
    directory = volume_path(directory)
    if not is_directory(volume, directory):
        return ()
    paths = (
        join(directory, each.name + _SECURE_BOOT_SUFFIX)
        for each in volume.entries(directory)
        if not each.is_directory
        and each.name.endswith(_EFI_SUFFIX)
        and not each.name.startswith(".")
    )
    return tuple(path for path in paths if is_file(volume, path))


def is_file(volume: FatVolume, path: str) -> bool:
    """True if ``path`` is a file of the volume, as in ``test -f``."""
    entry = volume.find(volume_path(path))
    return entry is not None and not entry.is_directory


def _copy(origin: FatVolume, source: str, volume: FatVolume, target: str) -> Iterator[FileChange]:
    """Copy a file, or a directory with its content; other files in ``target`` stay."""
    if not is_directory(origin, source):
        yield put_file(volume, target, read_file(origin, source))
        return
    yield from make_directories(volume, target)
    for entry in origin.walk(source):
        place = target + entry.path[len(source) :]
        if entry.is_directory:
            yield from make_directories(volume, place)
        else:
            yield from make_directories(volume, parent_of(place))
            yield put_file(volume, place, read_file(origin, entry.path))


def _remove_others(
    origin: FatVolume, source: str, volume: FatVolume, target: str
) -> Iterator[FileChange]:
    """Remove ``target``, or what is below it, except for files that ``source`` has too."""
    if volume.find(target) is None:
        return
    if not is_directory(volume, target):
        yield from Remove(target).apply(volume)
        return
    same = {(each.path[len(source) :], each.is_directory) for each in origin.walk(source)}
    for entry in tuple(volume.walk(target)):
        is_kept = (entry.path[len(target) :], entry.is_directory) in same
        # The content of a removed directory is gone already.
        if not is_kept and volume.find(entry.path) is not None:
            yield from Remove(entry.path, recursive=True).apply(volume)
