"""What a flasher copies from its own boot partition into that of the image it installs.

The steps are those of meta-balena's ``resin-init-flasher`` (v8.0.2), each an edit of the inner
boot partition. What is copied is read when the edit is made, one file at a time: the flasher's
volume must stay open until then.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from balenaflash.balena.image import CONFIG_PATH
from balenaflash.edits.config.edit import read_config
from balenaflash.edits.config.json_text import Json, format_document
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.files import (
    FileChange,
    Remove,
    is_directory,
    make_directories,
    put_file,
    read_file,
)
from balenaflash.edits.paths import join, name_of, parent_of, volume_path
from balenaflash.formats.fat.volume import FatVolume

_SECURE_BOOT_SUFFIX = ".secureboot"
_EFI_SUFFIX = ".efi"


@dataclass(frozen=True, slots=True)
class MergeDirectory:
    """Add a directory's files to the inner one of the same name: the splash.

    As ``cp -r DIRECTORY/*`` does it, which leaves out names that begin with a dot.
    """

    origin: FatVolume = field(repr=False)
    directory: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        directory = volume_path(self.directory)
        changes = [*make_directories(volume, directory)]
        for entry in self.origin.entries(directory):
            if not entry.name.startswith("."):
                changes += _copy(self.origin, entry.path, volume, join(directory, entry.name))
        return tuple(changes)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"add the flasher's {volume_path(self.directory)}"


@dataclass(frozen=True, slots=True)
class ReplaceDirectory:
    """Put a directory in the place of the inner one of the same name, with all it holds."""

    origin: FatVolume = field(repr=False)
    directory: str

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; a file that stays as it is is not touched."""
        directory = volume_path(self.directory)
        # `cp -r A/B INNER` copies B to the root of the inner partition, wherever it was.
        target = join("/", name_of(directory))
        removed = [*_remove_others(self.origin, directory, volume, target)]
        return (*removed, *_copy(self.origin, directory, volume, target))

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"replace {volume_path(self.directory)} by the flasher's"


@dataclass(frozen=True, slots=True)
class InstallFile:
    """Copy one file to a place in the inner partition; its directory is made where it is missing.

    The flasher itself gives up where the directory is missing, in the middle of its work.
    """

    origin: FatVolume = field(repr=False)
    file: str
    target: str

    signed: bool = False
    """Whether ``FILE.sig``, where there is one, goes with it."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
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
        """What it does, in a few words."""
        return f"put the flasher's {volume_path(self.file)} to {volume_path(self.target)}"


@dataclass(frozen=True, slots=True)
class RemoveSecureBootPrograms:
    """Remove the boot programs that only a board with secure boot and encryption starts."""

    directory: str
    """Where the bootloader and its configuration lie."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``."""
        paths = find_secure_boot_programs(volume, self.directory)
        return tuple(change for path in paths for change in Remove(path).apply(volume))

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"remove *{_EFI_SUFFIX}{_SECURE_BOOT_SUFFIX} from {volume_path(self.directory)}"


def find_secure_boot_programs(volume: FatVolume, directory: str) -> tuple[str, ...]:
    """Paths of the ``NAME.efi.secureboot`` in ``directory`` that stand beside a ``NAME.efi``."""
    directory = volume_path(directory)
    if not is_directory(volume, directory):
        return ()
    names = [each.name for each in volume.entries(directory) if not each.is_directory]
    variants = (join(directory, name + _SECURE_BOOT_SUFFIX) for name in names if _is_program(name))
    return tuple(path for path in variants if is_file(volume, path))


def is_file(volume: FatVolume, path: str) -> bool:
    """Whether ``path`` is a file of the volume, as ``test -f`` tells."""
    entry = volume.find(volume_path(path))
    return entry is not None and not entry.is_directory


def _is_program(name: str) -> bool:
    return name.endswith(_EFI_SUFFIX) and not name.startswith(".")


def _copy(origin: FatVolume, source: str, volume: FatVolume, target: str) -> Iterator[FileChange]:
    """Copy a file, or a directory and all that is in it; what else is there stays."""
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
    """Remove what is at or below ``target`` and has no namesake of its kind in ``source``."""
    if volume.find(target) is None:
        return
    if not is_directory(volume, target):
        yield from Remove(target).apply(volume)
        return
    same = {(each.path[len(source) :], each.is_directory) for each in origin.walk(source)}
    for entry in tuple(volume.walk(target)):
        kept = (entry.path[len(target) :], entry.is_directory) in same
        # What was below a directory that is removed has gone with it.
        if not kept and volume.find(entry.path) is not None:
            yield from Remove(entry.path, recursive=True).apply(volume)


INSTALLER_KEY = "installer"


@dataclass(frozen=True, slots=True)
class Installer:
    """What config.json asks of the flasher that reads it."""

    present: bool
    """Whether it has such a section at all."""

    wants_secure_boot: bool
    """Whether the board is to be locked to signed systems, and its disk encrypted."""

    target_devices: tuple[str, ...]
    """Names that take the place of ``INTERNAL_DEVICE_KERNEL``; none for no word of it."""


def read_installer(volume: FatVolume) -> Installer:
    """What the config.json of a flasher's boot partition asks for.

    Raises:
        ConfigError: it is missing or not valid; the flasher gives up as well.
    """
    section = read_config(volume).content.get(INSTALLER_KEY)
    content: dict[str, Json] = section if isinstance(section, dict) else {}
    devices = content.get("target_devices")
    # balena's own tools store booleans as strings at times; it is too grave to be missed.
    wanted = content.get("secureboot") in (True, "true")
    names = tuple(devices.split()) if isinstance(devices, str) else ()
    return Installer(section is not None, wanted, names)


@dataclass(frozen=True, slots=True)
class InstallConfig:
    """Put the flasher's config.json into the inner partition, without its ``installer``."""

    origin: FatVolume = field(repr=False)

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; but for that key the text is the flasher's."""
        document = read_config(self.origin)
        content = {key: each for key, each in document.content.items() if key != INSTALLER_KEY}
        if INSTALLER_KEY in document.content:
            data = format_document(replace(document, content=content))
        else:
            data = read_file(self.origin, CONFIG_PATH)
        return (put_file(volume, CONFIG_PATH, data),)

    def describe(self) -> str:
        """What it does, in a few words."""
        return f"put the flasher's {CONFIG_PATH}, without {INSTALLER_KEY}"
