"""Whether a disk by itself is fit to be written: what it is, what it holds, who may open it."""

import grp
import os
import stat
from collections.abc import Iterator

from balenaflash.errors import Problem
from balenaflash.extent import GIB, format_size
from balenaflash.target.bus import Bus
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import DeviceNumber

DEFAULT_MAX_SIZE = 256 * GIB
"""Bytes of the largest disk that needs no option: cards and eMMCs are smaller, disks that hold
somebody's work are mostly larger."""

_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


def find_built_in(disk: Disk) -> Iterator[Problem]:
    """Why a disk that is built in is refused."""
    if not (disk.is_external or disk.is_virtual):
        yield Problem(
            "target-internal",
            f"{disk.node}: is built into this machine ({disk.bus})",
            "If it is the one, add --allow-internal.",
            lifted_by="--allow-internal",
        )


def find_virtual(disk: Disk) -> Iterator[Problem]:
    """Why a virtual device is refused that the user did not name by its node.

    It may be the disk of a virtual machine, which holds it open without a claim to it.
    """
    if disk.is_virtual:
        yield Problem(
            "target-virtual",
            f"{disk.node}: is a virtual device, such as the disk of a virtual machine",
            f"If it is the one, name it by its node: {disk.node}",
            lifted_by="--allow-internal",
        )


def find_too_large(disk: Disk, max_size: int) -> Iterator[Problem]:
    """Why a disk of more than ``max_size`` bytes is refused, a virtual one too."""
    if disk.size > max_size:
        yield Problem(
            "target-too-large",
            f"{disk.node}: has {disk.size} bytes ({format_size(disk.size)}), more than the "
            f"{format_size(max_size)} that a target is expected to have at most",
            f"If it is the one, add --max-size {-(-disk.size // GIB)}G.",
            lifted_by="--max-size",
        )


def find_unwritable(disk: Disk) -> Iterator[Problem]:
    """Why a disk cannot be written at all."""
    if disk.size == 0:
        yield Problem(
            "target-no-medium",
            f"{disk.node}: is empty",
            "Attach a file to it." if disk.is_virtual else "Insert a card.",
        )
    if disk.read_only:
        yield Problem("target-read-only", f"{disk.node}: is read-only", _find_switch(disk))
    if not os.access(disk.node, os.F_OK) or _is_another(disk):
        yield Problem(
            "target-missing",
            f"{disk.node}: is not there",
            "Plug it in again; a container must be given the node.",
        )
    elif not os.access(disk.node, os.R_OK | os.W_OK, effective_ids=True):
        yield _no_permission(disk)


def _is_another(disk: Disk) -> bool:
    """Whether the node is that of another disk, as a container may have it."""
    status = disk.node.stat()
    number = DeviceNumber.from_raw(status.st_rdev)
    return stat.S_ISBLK(status.st_mode) and number != disk.device_number


def _find_switch(disk: Disk) -> str:
    """Where the write protection of a disk is switched off."""
    match disk.bus:
        case Bus.SD:
            return "Slide the switch on the edge of the card, or of its adapter, away from LOCK."
        case Bus.USB:
            return (
                "Slide the switch on the edge of the card or its adapter away from LOCK, or the "
                "one on the stick; a card or stick that has none and is worn out stays read-only."
            )
        case Bus.LOOP:
            return f"Attach it again without --read-only: losetup --detach {disk.node}"
        case _:
            return (
                f"If nothing else protects it, let the kernel write: blockdev --setrw {disk.node}"
            )


def _no_permission(disk: Disk) -> Problem:
    status = disk.node.stat()
    group = _find_group(status.st_gid)
    ways = [
        "run it as root (sudo balenaflash ...)",
        "install the udev rule (sudo balenaflash udev install)",
    ]
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


def find_too_small(disk: Disk, image_size: int) -> Iterator[Problem]:
    """Why an image of ``image_size`` bytes does not fit."""
    if 0 < disk.size < image_size:
        yield Problem(
            "target-too-small",
            f"{disk.node}: has {disk.size} bytes ({format_size(disk.size)}), "
            f"the image {image_size} ({format_size(image_size)})",
            f"A disk of at least {image_size} bytes is needed.",
        )


def find_sector_size(disk: Disk, image_sector_size: int) -> Iterator[Problem]:
    """Why an image whose tables count in other sectors is refused."""
    found = disk.logical_sector_size
    if found != image_sector_size:
        yield Problem(
            "target-sector-size",
            f"{disk.node}: has sectors of {found} bytes, the image's tables count in "
            f"{image_sector_size}: each number in them would mean another place on this disk, "
            "and no partition would be found",
            f"Choose a disk with sectors of {image_sector_size} bytes; another USB enclosure may "
            "show the same disk so.",
        )
