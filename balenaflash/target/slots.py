"""A lab's names for USB ports, kept in a file.

The file is TOML, a line a slot: ``left = "1-2.3"``. There are two: one of the user's own, and one
for all users of the machine; where both know a name, the user's wins. Root has the latter only:
with sudo the home may be another user's. ``$BALENAFLASH_SLOTS`` names one that is used in place of
both.
"""

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from balenaflash.durable import replace_file
from balenaflash.errors import ConfigError

SYSTEM_SLOTS = Path("/etc/balenaflash/slots.toml")
"""Those of the machine."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PORT = re.compile(r"\d+-\d+(\.\d+){0,5}")  # as the kernel names a USB device; six hubs deep
_KEY_OF_LINE = re.compile(r"""\s*(["']?)(?P<name>[A-Za-z0-9._-]+)\1\s*=""")


def slot_files() -> tuple[Path, ...]:
    """The files that are read, the one that is overruled first."""
    given = os.environ.get("BALENAFLASH_SLOTS")
    if given:
        return (Path(given),)
    return (SYSTEM_SLOTS,) if os.geteuid() == 0 else (SYSTEM_SLOTS, _user_slots())


def own_file() -> Path:
    """The file in which this user keeps names: root those of the machine."""
    return slot_files()[-1]


def _user_slots() -> Path:
    """As the XDG Base Directory Specification 0.8 has it."""
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = given if given.is_absolute() else Path.home() / ".config"
    return home / "balenaflash/slots.toml"


def read_slots(files: Sequence[Path] | None = None) -> dict[str, str]:
    """The port of each slot, by name; ``files`` are `slot_files`, and need not be there.

    Raises:
        ConfigError: a file is there, but cannot be read, or is not valid.
    """
    slots: dict[str, str] = {}
    for path in slot_files() if files is None else files:
        slots |= _parse(_read(path), path)
    return slots


def check_name(name: str) -> None:
    """Return if a slot may be called ``name``: it becomes the name of a link below /dev.

    Raises:
        ConfigError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a slot",
            code="slot-name",
            hint="A name has small letters, digits, dots, dashes and underscores.",
        )


def check_port(port: str) -> None:
    """Return if ``port`` is that of a USB device, such as ``1-2.3``: bus 1, port 2, its port 3.

    Raises:
        ConfigError: it is not.
    """
    if not _PORT.fullmatch(port):
        raise ConfigError(
            f"{port!r} is not a USB port",
            code="slot-port",
            hint="A port looks like 1-2.3; balenaflash devices shows those in use.",
        )


def name_port(path: Path, name: str, port: str | None) -> None:
    """Keep ``port`` as ``name`` in the file at ``path``, or with ``None`` forget the name.

    Other lines stay as they are. The file is replaced wholly or not at all.

    Raises:
        ConfigError: the name, the port or the file is not valid, the file cannot be written, or
            a name that is to be forgotten is not in it.
    """
    check_name(name)
    if port is not None:
        check_port(port)
    text = _read(path)
    known = _parse(text, path)
    if port is None and name not in known:
        raise ConfigError(f"{path}: has no slot {name!r}", code="slot-unknown")
    _write(path, _replaced(text, name, port))


def _replaced(text: str, name: str, port: str | None) -> str:
    line = None if port is None else f'"{name}" = "{port}"'
    lines: list[str] = []
    for each in text.splitlines():
        key = _KEY_OF_LINE.match(each)
        if key is None or key["name"] != name:
            lines.append(each)
        elif line is not None:
            lines.append(line)
            line = None
    if line is not None:
        lines.append(line)
    return "".join(f"{each}\n" for each in lines)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}", code="slots-unreadable") from error


def _parse(text: str, path: Path) -> Mapping[str, str]:
    try:
        content = tomllib.loads(text)
    except ValueError as error:
        raise _invalid(path, str(error)) from error
    slots: dict[str, str] = {}
    for name, port in content.items():
        if not isinstance(port, str):
            raise _invalid(path, f"{name} must be a USB port in quotes")
        try:
            check_name(name)
            check_port(port)
        except ConfigError as error:
            raise _invalid(path, str(error)) from error
        slots[name] = port
    return slots


def _invalid(path: Path, fact: str) -> ConfigError:
    return ConfigError(
        f"{path}: is not valid: {fact}",
        code="slots-invalid",
        hint='Each line is NAME = "PORT", such as left = "1-2.3".',
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}", code="slots-not-written"
        ) from error
