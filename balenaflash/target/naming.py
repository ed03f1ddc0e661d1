"""Disks by what does not change when others come and go: serial number, USB port, slot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import format_size
from balenaflash.target.discovery import Disk, find_disk, list_disks
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.slots import read_slots
from balenaflash.target.udev import UdevDatabase


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
        raise _refusal(
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
        raise _refusal(
            "target-ambiguous",
            f"{target}: names {len(found)} disks: {', '.join(map(_describe, found))}",
            "Name one of them by its port or its node.",
        )
    there = [_describe(disk) for disk in disks]
    raise _refusal(
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


def _refusal(code: str, message: str, hint: str) -> TargetRefusedError:
    return TargetRefusedError([Problem(code, message, hint)])
