"""A flasher's settings file, ``/etc/resin-init-flasher.conf``, read without a shell.

The names and their meaning are those of meta-balena v8.0.2, ``resin-init-flasher.bb`` and the
program of that name. Flashers up to about balenaOS 2.60 have ``RESIN_IMAGE``, and the names in
``_BUILT_IN`` built in.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from balenaflash.errors import ImageError

SETTINGS_PATH = "/etc/resin-init-flasher.conf"

_IMAGE_NAMES = ("BALENA_IMAGE", "RESIN_IMAGE")
_BUILT_IN = {
    "BALENA_SPLASH_CONFIG": "splash",
    "BALENA_BOOTLOADER_CONFIG": "resinOS_uEnv.txt",
    "BALENA_NM_CONFIG": "system-connections",
    "BALENA_NM_DISPATCHER": "dispatcher.d",
    "BALENA_PROXY_CONFIG": "system-proxy",
}
"""Values of names that the file does not have; a name that is set to nothing is one it has."""

_SUFFIXES = ("", "_1")
"""Suffixes of the two boot loaders that may be written."""

_BOOTLOADER_NAMES = (
    "BOOTLOADER_FLASH_DEVICE",
    "BOOTLOADER_IMAGE",
    "BOOTLOADER_BLOCK_SIZE_OFFSET",
    "BOOTLOADER_SKIP_OUTPUT_BLOCKS",
)
_KNOWN = frozenset(
    {
        *_IMAGE_NAMES,
        *_BUILT_IN,
        *(name + suffix for name in _BOOTLOADER_NAMES for suffix in _SUFFIXES),
        "INTERNAL_DEVICE_KERNEL",
        "INTERNAL_DEVICE_BOOTLOADER_CONFIG",
        "INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH",
        "INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH",
        "INTERNAL_DEVICE_BOOTLOADER_CONFIG_LUKS",
        "USE_LUKS",
    }
)

_LINE = re.compile(
    r"[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)", re.DOTALL
)
_PART = re.compile(
    r"""
    '(?P<single>[^']*)'
    | "(?P<double>(?:[^"\\$`]|\\.)*)"
    | \\(?P<escaped>.)
    | (?P<plain>(?!~)[^\s'"\\$`;&|<>()]+)
    | (?P<end>[ \t]+(?:\#.*)?)$
    """,
    re.VERBOSE | re.DOTALL,
)
"""A part of a value (POSIX.1-2017, Shell Command Language, 2.2), without any expansion."""

_LINE_CODE = "settings-invalid"
_ESCAPED = re.compile(r"\\([\\$`\"])")  # 2.2.3: within double quotes a backslash escapes these


def parse_settings(data: bytes, name: str) -> dict[str, str]:
    """The variables that ``data`` sets; the last assignment of a variable counts.

    Nothing is run or expanded: a line that would need a shell is refused. ``name`` is the name of
    the file in messages.

    Raises:
        ImageError: it is not UTF-8, or a line is not a plain assignment (``settings-invalid``).
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(name, f"is not UTF-8 at byte {error.start}", _LINE_CODE) from error
    settings: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        assignment = _parse_line(line)
        if assignment is None:
            raise _invalid(name, f"line {number} is not a plain NAME=value", _LINE_CODE)
        settings[assignment[0]] = assignment[1]
    return settings


def read_assignments(data: bytes) -> dict[str, str]:
    """As `parse_settings`, without lines that are not plain assignments and without empty values.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    assignments = filter(None, map(_parse_line, data.decode("utf-8").splitlines()))
    return {name: value for name, value in assignments if value}


def _parse_line(line: str) -> tuple[str, str] | None:
    match = _LINE.fullmatch(line)
    value = None if match is None else _parse_value(match["value"])
    return None if match is None or value is None else (match["name"], value)


def _parse_value(text: str) -> str | None:
    """The word ``text`` without its quotes; ``None`` if a shell would read anything else."""
    parts: list[str] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None:
            return None
        position = match.end()
        match match.lastgroup:
            case "double":
                parts.append(_ESCAPED.sub(r"\1", match["double"]))
            case "end":
                break
            case group:
                parts.append(match[group or 0])
    return "".join(parts) if position == len(text) else None


_NUMBER = re.compile(r"(?P<digits>[0-9]{1,12})(?P<unit>[A-Za-z]*)")
_UNITS = {
    "": 1,
    "c": 1,
    "w": 2,
    "b": 512,
    "kB": 1000,
    "MB": 1000**2,
    **dict.fromkeys(("k", "K", "KiB"), 1024),
    **dict.fromkeys(("M", "MiB"), 1024**2),
}
"""dd(1): N and BYTES may be followed by these multiplicative suffixes."""


@dataclass(frozen=True, slots=True)
class BootloaderImage:
    """A boot loader that the flasher writes outside of all partitions."""

    device: str
    """Name of the disk by the board's kernel, such as ``mmcblk0`` or ``mtdblock0``."""

    file: str
    """Path in the flasher's boot partition."""

    offset: int
    """Offset on the disk, in bytes."""


@dataclass(frozen=True, slots=True)
class FlasherSettings:
    """The flasher's settings; ``None`` is one that is not set, or set to nothing."""

    internal_devices: tuple[str, ...]
    """Names or shell patterns, by the board's kernel, of the disks it may write; it writes the
    first that is there."""

    image: str
    """Name of the image it writes; a pattern for ``find -name``."""

    bootloader_config: str | None
    """File of its boot partition that is the bootloader's configuration on the internal disk."""

    bootloader_config_path: str | None
    """Its path in the inner boot partition; set whenever the former is."""

    bootloader_legacy_path: str | None
    """A second path for it."""

    bootloader_environment: str | None
    """File of its boot partition that goes to the root of the inner one."""

    bootloaders: tuple[BootloaderImage, ...]
    splash: str | None
    """Directory of its boot partition whose files are added to the inner one."""

    connections: str | None
    """Directory of its boot partition that replaces the inner one, like the next two."""

    dispatcher: str | None
    proxy: str | None
    uses_luks: bool
    """True if it encrypts with LUKS, if config.json requests encryption."""

    bootloader_config_luks: str | None
    others: Mapping[str, str]
    """All other settings, by name."""


def parse_flasher_settings(data: bytes, name: str) -> FlasherSettings:
    """The settings in ``data``; ``name`` is the name of the file in messages.

    Raises:
        ImageError: it has a line that is not a plain assignment (``settings-invalid``), or lacks
            a setting that the flasher needs (``flasher-settings-invalid``).
    """
    given = parse_settings(data, name)

    def value(key: str) -> str | None:
        return given.get(key, _BUILT_IN.get(key)) or None

    image = next(filter(None, map(given.get, _IMAGE_NAMES)), None)
    if image is None:
        raise _invalid(name, "does not name the image to write: BALENA_IMAGE is not set")
    config = value("INTERNAL_DEVICE_BOOTLOADER_CONFIG")
    config_path = value("INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH")
    if config is not None and config_path is None:
        raise _invalid(
            name,
            "sets INTERNAL_DEVICE_BOOTLOADER_CONFIG without INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH",
        )
    bootloaders = (_read_bootloader(given, suffix, name) for suffix in _SUFFIXES)
    return FlasherSettings(
        internal_devices=tuple(given.get("INTERNAL_DEVICE_KERNEL", "").split()),
        image=image,
        bootloader_config=config,
        bootloader_config_path=config_path,
        bootloader_legacy_path=value("INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH"),
        bootloader_environment=value("BALENA_BOOTLOADER_CONFIG"),
        bootloaders=tuple(each for each in bootloaders if each is not None),
        splash=value("BALENA_SPLASH_CONFIG"),
        connections=value("BALENA_NM_CONFIG"),
        dispatcher=value("BALENA_NM_DISPATCHER"),
        proxy=value("BALENA_PROXY_CONFIG"),
        uses_luks=value("USE_LUKS") == "1",
        bootloader_config_luks=value("INTERNAL_DEVICE_BOOTLOADER_CONFIG_LUKS"),
        others={key: text for key, text in given.items() if key not in _KNOWN},
    )


def _read_bootloader(given: Mapping[str, str], suffix: str, name: str) -> BootloaderImage | None:
    keys = [key + suffix for key in _BOOTLOADER_NAMES]
    device, file, size, skip = (given.get(key, "") for key in keys)
    if not device:
        return None
    if not file:
        raise _invalid(name, f"sets {keys[0]} without {keys[1]}")
    offset = _parse_number(size, keys[2], name) * _parse_number(skip, keys[3], name)
    return BootloaderImage(device, file, offset)


def _parse_number(text: str, key: str, name: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None or match["unit"] not in _UNITS:
        raise _invalid(name, f"{key} is {text!r}, which is not a number of bytes or blocks")
    return int(match["digits"]) * _UNITS[match["unit"]]


def _invalid(name: str, fact: str, code: str = "flasher-settings-invalid") -> ImageError:
    return ImageError(f"{name}: {fact}", code=code)
