"""Disks by names that last: serial number, USB port, slot; and misspelt names.

The file is TOML, a line a slot: ``left = "1-2.3"``. There are two: one of the user's own, and one
for all users of the machine; where both know a name, the user's wins. Root has the latter only:
with sudo the home may be another user's. ``$BALENAFLASH_SLOTS`` names one that is used in place of
both.
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


class NameKind(StrEnum):
    """What a disk is named by."""

    SERIAL = "serial"
    """Its serial number; of a disk on USB that of the enclosure or reader."""

    PORT = "port"
    """The USB port that it is plugged into, such as ``1-2.3``."""

    SLOT = "slot"
    """A port that the lab gave a name."""


@dataclass(frozen=True, slots=True)
class DiskName:
    """A disk that is named by something else than its node."""

    kind: NameKind
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


TargetName = Path | DiskName
"""What is to be written or compared, as the user named it."""


def parse_target(text: str) -> TargetName:
    """The name in ``text``; a file whose name looks like that of a disk is ``./serial:1``."""
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
    """The one whole block device that ``target`` names; ``slots`` are the lab's own by default.

    A reader with several slots is several disks in one port; of them one that alone has a card is
    meant. Two readers with one serial number are told apart by port or slot only: where the card
    is missing in the one that is meant, that in the other must not be written.

    Raises:
        TargetRefusedError: there is none (``target-missing``), or there are several
            (``target-ambiguous``); or as `find_disk`.
        ConfigError: the file of slots is not valid.
        ToolMissingError: libudev is not installed.
    """
    if isinstance(target, Path):
        return find_disk(target, kernel, database)
    disks = list_disks(kernel, database)
    if target.kind is NameKind.SERIAL:
        return _choose(target, [disk for disk in disks if disk.serial == target.value], disks)
    port = target.value
    if target.kind is NameKind.SLOT:
        port = _port_of(target, read_slots() if slots is None else slots)
    return _choose(target, [disk for disk in disks if disk.usb_port == port], disks)


def list_names(
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Every name by which `find_named` finds a disk that is here, and which disk that is.

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
    """The size, and the model where it is known."""
    return " ".join(filter(None, [format_size(disk.size), disk.model]))


def _port_of(target: DiskName, slots: Mapping[str, str]) -> str:
    if target.value not in slots:
        known = ", ".join(sorted(slots)) or "none yet"
        raise refusal(
            "target-missing",
            f"{target}: there is no slot of that name; known are: {known}",
            "Name one: balenaflash devices name PORT NAME",
        )
    return slots[target.value]


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
    there = [_describe(disk) for disk in disks]
    raise refusal(
        "target-missing",
        f"{target}: no disk that is here is named so",
        f"Here are: {', '.join(there)}" if there else "Plug it in, then: balenaflash devices",
    )


def _find_meant(found: Sequence[Disk]) -> Disk | None:
    """The disk that is meant of those ``found`` by one name; ``None`` if that is not clear."""
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
"""What the kernel calls disks and partitions, here or not."""

_ASSIGNMENT = re.compile(r"(?P<word>[^\W\d]\w*)\s*[:=]\s*(?P<value>.*)", re.DOTALL)
_LINK_DIRECTORIES = ("mapper", "md", "balenaflash")  # below /dev, beside disk/by-*


def check_file_name(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> None:
    """Return if ``text`` may name a file; a word that was meant for a disk may not.

    Such are the name of a disk without ``/dev/``, a serial number, port or slot without its
    kind, and whatever looks like a kind: ``slot=left``. With a slash anything names a file.

    Raises:
        TargetRefusedError: ``target-misspelt``, with the right spelling where it is known.
    """
    spelling = find_spelling(text, kernel, database, slots)
    if spelling is None:
        return
    disk = f"For the disk: {spelling}" if spelling else "Disks are listed by: balenaflash devices"
    raise refusal(
        "target-misspelt",
        f"{text}: looks like the name of a disk, but is not one",
        f"{disk}; for a file of that name: ./{text.strip()}",
    )


def find_spelling(
    text: str,
    kernel: Kernel = RUNNING_KERNEL,
    database: UdevDatabase | None = None,
    slots: Mapping[str, str] | None = None,
) -> str | None:
    """How the disk is spelt that ``text`` was meant for; ``None`` if it looks like no disk.

    The answer is empty where it looks like one that is not here.
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
    return value if value.startswith("/dev/") else ""  # as dd has it: of=/dev/sdX


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
    # Without libudev, or a valid file of slots, a file is written all the same.
    with suppress(BalenaflashError):
        slots = read_slots() if slots is None else slots
        if word in slots:
            yield f"{NameKind.SLOT}:{word}"
    with suppress(BalenaflashError):
        names = list_names(kernel, database, slots or {})
        yield from (name for name in names if name.partition(":")[2] == word)
