"""Mounts and swap of this mount namespace, as the kernel lists them.

Formats: Documentation/filesystems/proc.rst of the kernel, 3.5 (mountinfo), and mm/swapfile.c
(swaps). White space and backslashes in paths are three octal digits after a backslash.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.target.kernel import DeviceNumber, Kernel

_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")
_COLUMN_GAP = re.compile(rb"[ \t]+")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem."""

    identity: int
    """What no other mount has as long as this one is there."""
    number: DeviceNumber
    """The block device; of btrfs, overlay and others without one of their own, ``0:N``."""
    mount_point: str
    filesystem: str
    source: str
    """What was mounted: a node, or any text."""
    options: tuple[str, ...]
    """Those of the filesystem, such as ``lowerdir=...``."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One area that memory is paged out to."""

    path: str
    is_file: bool


def read_mounts(kernel: Kernel) -> tuple[Mount, ...]:
    """Every mount this process can see, in the order they were made."""
    return parse_mountinfo(_read(kernel.proc / "self/mountinfo"))


def read_swaps(kernel: Kernel) -> tuple[Swap, ...]:
    """Every swap area in use; none on a kernel without swap."""
    path = kernel.proc / "swaps"
    return parse_swaps(_read(path)) if path.exists() else ()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path}: {error.strerror}; so no disk is known to be unused"
        hint = "Run it where /proc is mounted."
        raise TargetRefusedError([Problem("usage-unknown", message, hint)]) from error


def parse_mountinfo(content: bytes) -> tuple[Mount, ...]:
    """The mounts listed in the text of ``/proc/self/mountinfo``."""
    return tuple(_parse_mount(line) for line in content.split(b"\n") if line)


def _parse_mount(line: bytes) -> Mount:
    # 36 35 98:0 /subdirectory /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    # Between the mount options and the dash are any number of fields.
    before, _, after = line.partition(b" - ")
    identity, _parent, number, _root, mount_point, *_ = before.split(b" ")
    filesystem, source, options = after.split(b" ", 2)
    return Mount(
        identity=int(identity),
        number=DeviceNumber.parse(number.decode()),
        mount_point=unescape(mount_point),
        filesystem=unescape(filesystem),
        source=unescape(source),
        options=tuple(unescape(option) for option in options.split(b",")),
    )


def parse_swaps(content: bytes) -> tuple[Swap, ...]:
    """The areas listed in the text of ``/proc/swaps``."""
    return tuple(_parse_swaps(content))


def _parse_swaps(content: bytes) -> Iterator[Swap]:
    # Not splitlines: a path may hold a carriage return.
    for line in filter(None, content.split(b"\n")[1:]):  # after the headings
        path, kind, *_ = _COLUMN_GAP.split(line)
        yield Swap(unescape(path), is_file=kind == b"file")


def unescape(field: bytes) -> str:
    """A field with its octal escapes undone; bytes that are no UTF-8 become surrogates."""
    return os.fsdecode(_OCTAL_ESCAPE.sub(lambda escape: bytes([int(escape[1], 8)]), field))


def find_mount(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount that the file at an absolute ``path`` lies in."""
    found = None
    for mount in mounts:
        # A later mount on the same point hides an earlier one, hence "not shorter".
        if Path(path).is_relative_to(mount.mount_point) and (
            found is None or len(mount.mount_point) >= len(found.mount_point)
        ):
            found = mount
    return found
