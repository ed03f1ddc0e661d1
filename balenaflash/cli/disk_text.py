"""A disk in words: what it is, and what is on it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from balenaflash.units import format_size

if TYPE_CHECKING:
    from balenaflash.targets.disks import Disk
    from balenaflash.targets.safety import Assessment


def describe_disk(disk: "Disk") -> list[str]:
    """Which disk it is: what stands on it, in it, and where it is plugged in."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part) or "unknown model"
    lines = [
        f"Target:  {disk.node}, {disk.bus}, {format_size(disk.size)} ({disk.size} bytes)",
        f"         {name}, serial {disk.serial or 'unknown'}",
    ]
    if disk.usb_port:
        lines.append(f"         USB port {disk.usb_port}")
    if disk.backing_file:
        lines.append(f"         shows {disk.backing_file}")
    return lines


def short_description(disk: "Disk") -> list[str]:
    """Which disk it is, as facts for one line."""
    name = " ".join(part for part in (disk.vendor, disk.model) if part)
    facts = [str(disk.node), disk.bus.value, format_size(disk.size), name]
    facts.append(f"serial {disk.serial}" if disk.serial else "")
    facts.append(f"USB port {disk.usb_port}" if disk.usb_port else "")
    facts.append(f"shows {disk.backing_file}" if disk.backing_file else "")
    return list(filter(None, facts))


def describe_content(assessment: "Assessment") -> list[str]:
    """What is on a disk now: its partitions or its one filesystem, and where they are mounted."""
    from balenaflash.commands.write import find_content

    texts = []
    for each in find_content(assessment.disk):
        label = f" {each.label}" if each.label else ""
        filesystem = each.filesystem or "unknown content"
        texts.append(f"{each.name}: {filesystem}{label}, {format_size(each.size)}")
    texts += [f"{each.device} is mounted at {each.detail}" for each in assessment.mounts]
    return texts or ["no partition or filesystem known to this system"]


def indented(head: str, texts: Iterable[str]) -> list[str]:
    """``texts`` a line each, the first behind ``head``."""
    heads = iter([head])
    return [f"{next(heads, ''):<9}{text}" for text in texts]
