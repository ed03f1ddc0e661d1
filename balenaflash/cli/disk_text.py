"""A disk in words: what it is, and what is on it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from balenaflash.cli.answer import printable
from balenaflash.extent import format_size

if TYPE_CHECKING:
    from balenaflash.safety import Assessment
    from balenaflash.target.discovery import Disk


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
    return [printable(line) for line in lines]


def describe_content(assessment: "Assessment") -> list[str]:
    """What is on a disk now: its partitions or its one filesystem, and where they are mounted."""
    disk = assessment.disk
    texts = [
        _describe(each.node.name, each.filesystem, each.label, each.size)
        for each in disk.partitions
    ]
    if not texts and (disk.filesystem or disk.label):
        texts = [_describe(disk.node.name, disk.filesystem, disk.label, disk.size)]
    texts += [f"{each.device} is mounted at {each.detail}" for each in assessment.mounts]
    return texts or ["no partition or filesystem known to this system"]


def indented(head: str, texts: Iterable[str]) -> list[str]:
    """``texts`` a line each, the first behind ``head``, fit to print."""
    heads = iter([head])
    return [printable(f"{next(heads, ''):<9}{text}") for text in texts]


def _describe(name: str, filesystem: str | None, label: str | None, size: int) -> str:
    label_text = f" {label}" if label else ""
    return f"{name}: {filesystem or 'unknown content'}{label_text}, {format_size(size)}"
