"""Whether a disk may be written, and every reason why it may not."""

import grp
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import SECTOR_SIZE, format_size
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.usage import (
    Use,
    UseKind,
    disks_under,
    find_uses,
    is_backed_by,
    system_disks,
)

_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Assessment:
    """A disk, what it is in use for, and everything that speaks against writing it."""

    disk: Disk
    uses: tuple[Use, ...]
    problems: tuple[Problem, ...]
    """The gravest first."""

    @property
    def is_writable(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


def assess(
    disk: Disk,
    *,
    image_size: int | None = None,
    image_path: Path | None = None,
    image_sector_size: int = SECTOR_SIZE,
    allow_internal: bool = False,
    max_size: int | None = None,
    kernel: Kernel = RUNNING_KERNEL,
) -> Assessment:
    """Look for every reason not to write the disk. It is not opened.

    Without an image the disk is judged by itself. ``allow_internal`` and ``max_size`` lift
    or set a limit of their own and nothing else. Whether somebody has the disk open
    exclusively shows only when it is opened.

    Raises:
        TargetRefusedError: the kernel does not tell what is in use.
    """
    uses = find_uses(disk, kernel)
    on_disk = system_disks(kernel).get(disk.device_number, ())
    problems = (
        *_find_system(disk, on_disk),
        *_find_image(disk, image_path, kernel),
        *_find_in_use(disk, uses, is_system=bool(on_disk)),
        *_find_internal(disk, allow_internal=allow_internal),
        *_find_unwritable(disk),
        *_find_too_small(disk, image_size),
        *_find_too_large(disk, max_size),
        *_find_sector_size(disk, image_sector_size),
    )
    return Assessment(disk, uses, problems)


def require_writable(assessment: Assessment) -> None:
    """Return if the disk may be written.

    Raises:
        TargetRefusedError: with every reason why not.
    """
    if assessment.problems:
        raise TargetRefusedError(assessment.problems)


def _find_system(disk: Disk, on_disk: tuple[str, ...]) -> Iterator[Problem]:
    if on_disk:
        yield Problem(
            "target-system-disk",
            f"{disk.node}: holds the running system ({', '.join(on_disk)})",
            "Choose another disk; no option lifts this refusal.",
        )


def _find_image(disk: Disk, image_path: Path | None, kernel: Kernel) -> Iterator[Problem]:
    if image_path is None:
        return
    if is_backed_by(disk, image_path, kernel):
        yield Problem(
            "target-holds-image",
            f"{disk.node}: shows the image itself, {image_path}",
            "Detach the loop device, or name another one.",
        )
    elif disk.device_number in disks_under(image_path, kernel):
        yield Problem(
            "target-holds-image",
            f"{disk.node}: holds the image itself, {image_path}",
            "Copy the image to another disk first.",
        )


def _find_in_use(disk: Disk, uses: tuple[Use, ...], *, is_system: bool) -> Iterator[Problem]:
    mounts = [use for use in uses if use.kind is UseKind.MOUNT]
    swaps = [use for use in uses if use.kind is UseKind.SWAP]
    holders = [use for use in uses if use not in mounts and use not in swaps]
    # What the running system needs cannot be given up, so there is no next step.
    if mounts:
        hint = None if is_system else _unmounting(mounts)
        yield Problem("target-mounted", f"{disk.node}: is mounted ({_list_uses(mounts)})", hint)
    if swaps:
        hint = f"Release it first: swapoff {_quote(use.detail for use in swaps)}"
        yield Problem("target-swap", f"{disk.node}: is used as swap ({_list_uses(swaps)})", hint)
    if holders:
        hint = None if is_system else _releasing(disk, holders)
        yield Problem(
            "target-held", f"{disk.node}: other devices stand on it ({_list_uses(holders)})", hint
        )


def _list_uses(uses: Iterable[Use]) -> str:
    preposition = {UseKind.MOUNT: "at", UseKind.SWAP: "as"}
    return ", ".join(
        f"{use.device} {preposition.get(use.kind, f'by {use.kind}')} {use.detail}" for use in uses
    )


def _unmounting(mounts: Iterable[Use]) -> str:
    # Mounts below others come first, or the upper ones would be busy.
    points = sorted({use.detail for use in mounts}, reverse=True)
    return f"Unmount it first: umount {_quote(points)}"


def _releasing(disk: Disk, holders: Iterable[Use]) -> str:
    commands = dict.fromkeys(
        f"{_RELEASE_COMMANDS[use.kind]} {shlex.quote(use.detail)}"
        for use in holders
        if use.kind in _RELEASE_COMMANDS
    )
    if not commands:
        return f"See what they are: lsblk {disk.node}"
    # What stands uppermost is found last and goes first.
    return f"Release it first: {'; '.join(reversed(commands))}"


_RELEASE_COMMANDS = {
    UseKind.CRYPT: "cryptsetup close",
    UseKind.DEVICE_MAPPER: "dmsetup remove",
    UseKind.LOOP: "losetup --detach",
    UseKind.LVM: "dmsetup remove",  # of one volume by the name that is shown, unlike vgchange
    UseKind.RAID: "mdadm --stop",
}


def _quote(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _find_internal(disk: Disk, *, allow_internal: bool) -> Iterator[Problem]:
    # Who names a loop device or an md array has chosen it; nobody mistakes it for a card.
    if not (disk.is_external or disk.is_virtual or allow_internal):
        yield Problem(
            "target-internal",
            f"{disk.node}: is built into this machine ({disk.bus})",
            "If it is the one, add --allow-internal.",
        )


def _find_unwritable(disk: Disk) -> Iterator[Problem]:
    if disk.size == 0:
        yield Problem(
            "target-no-medium",
            f"{disk.node}: is empty",
            "Attach a file to it." if disk.is_virtual else "Insert a card.",
        )
    if disk.read_only:
        yield Problem(
            "target-read-only",
            f"{disk.node}: is read-only",
            "Slide the lock of the card or its adapter, or attach the loop device writable.",
        )
    if not os.access(disk.node, os.F_OK):
        yield Problem(
            "target-missing",
            f"{disk.node}: is not there",
            "Plug it in again; a container must be given the node.",
        )
    elif not os.access(disk.node, os.R_OK | os.W_OK, effective_ids=True):
        yield _no_permission(disk)


def _no_permission(disk: Disk) -> Problem:
    status = disk.node.stat()
    group = _find_group(status.st_gid)
    ways = ["run it as root", "install the udev rule"]
    if status.st_gid != 0 and status.st_mode & _GROUP_MAY == _GROUP_MAY:
        ways.insert(1, f"join the group {group}")
    hint = ", ".join(ways[:-1]) + f" or {ways[-1]}"
    return Problem(
        "target-no-permission",
        f"{disk.node}: this user may not read and write it "
        f"({stat.filemode(status.st_mode)}, group {group})",
        f"{hint[0].upper()}{hint[1:]}.",
    )


def _find_group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)  # has no name, as often in a container


def _find_too_small(disk: Disk, image_size: int | None) -> Iterator[Problem]:
    if image_size is not None and 0 < disk.size < image_size:
        yield Problem(
            "target-too-small",
            f"{disk.node}: has {disk.size} bytes ({format_size(disk.size)}), "
            f"the image {image_size} ({format_size(image_size)})",
            f"A disk of at least {image_size} bytes is needed.",
        )


def _find_too_large(disk: Disk, max_size: int | None) -> Iterator[Problem]:
    if max_size is not None and disk.size > max_size:
        yield Problem(
            "target-too-large",
            f"{disk.node}: has {format_size(disk.size)}, more than the {format_size(max_size)} "
            "that are expected at most",
        )


def _find_sector_size(disk: Disk, image_sector_size: int) -> Iterator[Problem]:
    if disk.logical_sector_size != image_sector_size:
        yield Problem(
            "target-sector-size",
            f"{disk.node}: has sectors of {disk.logical_sector_size} bytes, the image's tables "
            f"count in {image_sector_size}",
            "Its partitions would not be found; choose another disk.",
        )
