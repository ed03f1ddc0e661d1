"""config.json as a flasher hands it on: without what is for the flasher alone."""

from dataclasses import dataclass, field, replace

from balenaflash.boot.config_edit import read_config
from balenaflash.boot.files import FileChange, put_file, read_file
from balenaflash.boot.json_text import Json, format_document
from balenaflash.image.balenaos import CONFIG_PATH
from balenaflash.image.fat.volume import FatVolume

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
