"""Lasting names of disks (serial number, USB port, slot), and misspelt names.

A slot is a USB port with a name. Slots are kept in TOML files, one slot a line:
``left = "1-2.3"``. One file is for all users of the machine, another for the user, whose names have
priority. Root has only the former: under sudo the home may be another user's.
``$BALENAFLASH_SLOTS`` replaces both.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from balenaflash.durable import replace_file
from balenaflash.errors import BalenaflashError, ConfigError, refusal
from balenaflash.targets.disks import Disk, find_disk, list_disks
from balenaflash.targets.sysfs import RUNNING_KERNEL, Kernel
from balenaflash.targets.udev import UdevDatabase
from balenaflash.units import format_size

SYSTEM_SLOTS = Path("/etc/balenaflash/slots.toml")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PORT = re.compile(r"\d+-\d+(\.\d+){0,5}")  # the kernel's name of a USB device; six hubs deep
_KEY_OF_LINE = re.compile(r"""\s*(["']?)(?P<name>[A-Za-z0-9._-]+)\1\s*=""")


def slot_files() -> tuple[Path, ...]:
    """The files of slots; the names in later ones have priority."""
    given = os.environ.get("BALENAFLASH_SLOTS")
    if given:
        return (Path(given),)
    if os.geteuid() == 0:
        return (SYSTEM_SLOTS,)
    # XDG Base Directory Specification 0.8: a relative path is ignored.
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = configured if configured.is_absolute() else Path.home() / ".config"
    return (SYSTEM_SLOTS, home / "balenaflash/slots.toml")


def own_file() -> Path:
    """The file that this user changes; for root that of the machine."""
    return slot_files()[-1]


def read_slots(files: Sequence[Path] | None = None) -> dict[str, str]:
    """The port of each slot, by name. ``files`` are `slot_files` by default; some may be missing.

    Raises:
        ConfigError: a file cannot be read, or is not valid.
    """
    slots: dict[str, str] = {}
    for path in slot_files() if files is None else files:
        slots |= _parse(_read(path), path)
    return slots


def check_name(name: str) -> None:
    """Return if ``name`` is valid for a slot; it becomes the name of a link below /dev.

    Raises:
        ConfigError: it is not valid.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a name for a slot",
            code="slot-name",
            hint="Use lower-case letters, digits, dots, dashes and underscores.",
        )


def check_port(port: str) -> None:
    """Return if ``port`` is a USB port, such as ``1-2.3``: port 3 of the hub in port 2 of bus 1.

    Raises:
        ConfigError: it is not.
    """
    if not _PORT.fullmatch(port):
        raise ConfigError(
            f"{port!r} is not a USB port",
            code="slot-port",
            hint="A port is written like 1-2.3; to list those in use: balenaflash devices",
        )


def name_port(path: Path, name: str, port: str | None) -> None:
    """Name the ``port`` in the file at ``path``, or with ``None`` remove the name.

    Other lines do not change. The file is replaced wholly or not at all.

    Raises:
        ConfigError: the name, the port or the file is not valid, the file cannot be written, or
            the name to remove is not in it.
    """
    check_name(name)
    if port is not None:
        check_port(port)
    text = _read(path)
    known = _parse(text, path)
    if port is None and name not in known:
        raise ConfigError(f"{path}: has no slot {name!r}", code="slot-unknown")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, _with_port(text, name, port).encode())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}", code="slots-not-written"
        ) from error


def _with_port(text: str, name: str, port: str | None) -> str:
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


class NameKind(StrEnum):
    """The kind of a disk's name."""

    SERIAL = "serial"
    """Serial number of the disk; on USB that of the enclosure or reader."""

    PORT = "port"
    """USB port that the disk is plugged into, such as ``1-2.3``."""

    SLOT = "slot"
    """Name of a USB port."""


@dataclass(frozen=True, slots=True)
class DiskName:
    """A name of a disk other than its node."""

    kind: NameKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


TargetName = Path | DiskName
"""A target as the user named it: the path of a node or file, or the name of a disk."""


def parse_target(text: str) -> TargetName:
    """The name in ``text``; a file whose name looks like that of a disk needs ``./`` before it."""
    for kind in NameKind:
        prefix = f"{kind}:"
        if text.startswith(prefix):
            return DiskName(kind, text.removeprefix(prefix))
    return Path(text)


def find_named(
    target: TargetName,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> Disk:
    """The one whole block device that ``target`` names; ``slots`` are those in files by default.

    A reader for several cards is several disks in one port; if only one has a card, that one is
    found. Two readers with the same serial number can only be named by port or slot: if the card
    is missing in one of them, the card in the other must not be written.

    Raises:
        TargetRefusedError: no disk has the name (``target-missing``), or several have it
            (``target-ambiguous``); or as `find_disk`.
        ConfigError: a file of slots is not valid.
        ToolMissingError: libudev is not installed.
    """
    if isinstance(target, Path):
        return find_disk(target, kernel, database)
    disks = list_disks(kernel, database)
    if target.kind is NameKind.SERIAL:
        return _choose(target, [disk for disk in disks if disk.serial == target.value], disks)
    port = target.value
    if target.kind is NameKind.SLOT:
        slots = read_slots() if slots is None else slots
        if target.value not in slots:
            raise refusal(
                "target-missing",
                f"{target}: is not a slot; known slots: {', '.join(sorted(slots)) or 'none'}",
                "Name the slot first: balenaflash devices name PORT NAME",
            )
        port = slots[target.value]
    return _choose(target, [disk for disk in disks if disk.usb_port == port], disks)


def list_names(
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Every name by which `find_named` finds a disk, with a description of that disk.

    Raises:
        ConfigError, ToolMissingError: as `find_named`.
    """
    ports = {port: name for name, port in (read_slots() if slots is None else slots).items()}
    named: dict[DiskName, list[Disk]] = {}
    for disk in list_disks(kernel, database):
        if disk.serial is not None:
            named.setdefault(DiskName(NameKind.SERIAL, disk.serial), []).append(disk)
        if disk.usb_port is not None:
            named.setdefault(DiskName(NameKind.PORT, disk.usb_port), []).append(disk)
        if disk.usb_port in ports:
            named.setdefault(DiskName(NameKind.SLOT, ports[disk.usb_port]), []).append(disk)
    return {
        str(name): f"{meant.node} {describe_shortly(meant)}"
        for name, found in named.items()
        if (meant := _find_meant(found)) is not None
    }


def describe_shortly(disk: Disk) -> str:
    """The size, and the model if it is known."""
    return " ".join(filter(None, [format_size(disk.size), disk.model]))


def _choose(target: DiskName, found: Sequence[Disk], disks: Sequence[Disk]) -> Disk:
    disk = _find_meant(found)
    if disk is not None:
        return disk
    if found:
        raise refusal(
            "target-ambiguous",
            f"{target}: names {len(found)} disks: {', '.join(map(_describe, found))}",
            "Name one of them by its port or its node.",
        )
    present = [_describe(disk) for disk in disks]
    raise refusal(
        "target-missing",
        f"{target}: no disk with this name is present",
        f"Present: {', '.join(present)}" if present else "Plug it in, then: balenaflash devices",
    )


def _find_meant(found: Sequence[Disk]) -> Disk | None:
    """The disk that one name means, of those ``found`` by it; ``None`` if it is ambiguous."""
    if len(found) == 1:
        return found[0]
    holding = [disk for disk in found if disk.size]
    ports = {disk.usb_port for disk in found}
    is_one_reader = len(ports) == 1 and None not in ports
    return holding[0] if is_one_reader and len(holding) == 1 else None


def _describe(disk: Disk) -> str:
    facts = [format_size(disk.size)]
    if disk.serial is not None:
        facts.append(f"serial:{disk.serial}")
    if disk.usb_port is not None:
        facts.append(f"port:{disk.usb_port}")
    return f"{disk.node} ({', '.join(facts)})"


_KERNEL_NAME = re.compile(
    r"(sd|hd|vd|xvd)[a-z]{1,3}\d{0,3}"
    r"|(mmcblk|loop|nbd|md|zd)\d+((p|boot)\d+)?"
    r"|nvme\d+n\d+(p\d+)?"
    r"|(dm-|bcache|sr|z?ram)\d+"
)
"""The kernel's names of disks and partitions."""

_ASSIGNMENT = re.compile(r"(?P<word>[^\W\d]\w*)\s*[:=]\s*(?P<value>.*)", re.DOTALL)
_LINK_DIRECTORIES = ("mapper", "md", "balenaflash")  # below /dev, beside disk/by-*


def check_file_name(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> None:
    """Return if ``text`` may name a file, and is not a misspelt name of a disk.

    Misspelt are the name of a disk without ``/dev/``, a serial number, port or slot without its
    kind, and a text that looks like a kind, such as ``slot=left``. With a slash any text may name a
    file.

    Raises:
        TargetRefusedError: ``target-misspelt``, with the right spelling if it is known.
    """
    spelling = find_spelling(text, kernel, database, slots)
    if spelling is None:
        return
    disk = f"For the disk: {spelling}" if spelling else "To list the disks: balenaflash devices"
    raise refusal(
        "target-misspelt",
        f"{text}: looks like the name of a disk, but is not one",
        f"{disk}; for a file with that name: ./{text.strip()}",
    )


def find_spelling(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> str | None:
    """The right spelling of the disk that ``text`` means; ``None`` if it does not mean a disk.

    It is empty if ``text`` looks like a disk that is not present.
    """
    word = text.strip()
    assignment = _ASSIGNMENT.fullmatch(word)
    if assignment is not None:
        return _spell_kind(assignment["word"].lower(), assignment["value"].strip())
    if not word or "/" in word:
        return None
    spellings = [*_find_nodes(word, kernel), *_find_names(word, kernel, database, slots)]
    if spellings:
        return spellings[0]
    return "" if _KERNEL_NAME.fullmatch(word.lower()) else None


def _spell_kind(word: str, value: str) -> str:
    kinds = difflib.get_close_matches(word, list(NameKind), n=1)
    if kinds:
        return f"{kinds[0]}:{value}"
    return value if value.startswith("/dev/") else ""  # as in dd of=/dev/sdX


def _find_nodes(word: str, kernel: Kernel) -> Iterator[str]:
    for name in (word, word.lower()):
        if os.path.exists(kernel.sys / "class/block" / name):  # noqa: PTH110 - takes any name
            yield f"/dev/{name}"
    links = [
        *sorted((kernel.dev / "disk").glob("by-*")),
        *map(kernel.dev.joinpath, _LINK_DIRECTORIES),
    ]
    for directory in links:
        if os.path.lexists(directory / word):
            yield f"/dev/{directory.relative_to(kernel.dev)}/{word}"


def _find_names(
    word: str, kernel: Kernel, database: UdevDatabase | None, slots: Mapping[str, str] | None
) -> Iterator[str]:
    # Without libudev, or a valid file of slots, a file may be written nevertheless.
    with suppress(BalenaflashError):
        slots = read_slots() if slots is None else slots
        if word in slots:
            yield f"{NameKind.SLOT}:{word}"
    with suppress(BalenaflashError):
        names = list_names(kernel, database, slots or {})
        yield from (name for name in names if name.partition(":")[2] == word)
