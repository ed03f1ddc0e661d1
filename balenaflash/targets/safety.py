"""Every reason why a disk may not be written."""

import grp
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, Bus, DeviceNumber, Kernel
from balenaflash.targets.usage import Usage, Use, UseKind, disks_under, is_backed_by
from balenaflash.units import GIB, SECTOR_SIZE, format_size

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


@dataclass(frozen=True, slots=True)
class Permissions:
    """Which refusals the user has lifted; each is one option, and none lifts another."""

    internal: bool = False
    """A disk that is built in, and any virtual device."""

    virtual: bool = False
    """A virtual device, since the user named its very node."""

    unmount: bool = False
    """A disk that is mounted, if not by the running system: it is unmounted before."""

    max_size: int | None = DEFAULT_MAX_SIZE
    """The largest disk in bytes; ``None`` for any."""


NO_PERMISSIONS = Permissions()


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

    @property
    def mounts(self) -> tuple[Use, ...]:
        """Where it is mounted; of a writable disk what is to be unmounted before."""
        return tuple(use for use in self.uses if use.kind is UseKind.MOUNT)


def assess(
    disk: Disk,
    *,
    image_size: int | None = None,
    image_path: Path | None = None,
    image_sector_size: int = SECTOR_SIZE,
    permissions: Permissions = NO_PERMISSIONS,
    kernel: Kernel = RUNNING_KERNEL,
    usage: Usage | None = None,
) -> Assessment:
    """Look for every reason not to write the disk. It is not opened.

    Without an image the disk is judged by itself. Whether somebody has the disk open
    exclusively shows only when it is opened. What is in use is looked at now, or was already
    for several disks: ``usage``.

    Raises:
        TargetRefusedError: the kernel does not tell what is in use.
    """
    usage = usage or Usage(kernel)
    uses = usage.of(disk)
    on_disk = usage.of_system(disk)
    is_unmounted = permissions.unmount and not on_disk
    problems = (
        *_find_system(disk, on_disk),
        *(() if permissions.internal else _find_unknown_system(disk, usage)),
        *_find_image(disk, image_path, kernel),
        *(() if is_unmounted else _find_mounts(disk, uses, is_system=bool(on_disk))),
        *_find_held(disk, uses, is_system=bool(on_disk)),
        *(() if permissions.internal else find_built_in(disk)),
        *(() if permissions.internal or permissions.virtual else find_virtual(disk)),
        *find_unwritable(disk),
        *(() if image_size is None else find_too_small(disk, image_size)),
        *(() if permissions.max_size is None else find_too_large(disk, permissions.max_size)),
        *find_sector_size(disk, image_sector_size),
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


def _find_unknown_system(disk: Disk, usage: Usage) -> Iterator[Problem]:
    if usage.is_system_unknown:
        yield Problem(
            "target-maybe-system",
            f"{disk.node}: may hold the running system, whose disk was not found",
            "If it does not, add --allow-internal.",
            lifted_by="--allow-internal",
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


def _find_mounts(disk: Disk, uses: tuple[Use, ...], *, is_system: bool) -> Iterator[Problem]:
    mounts = [use for use in uses if use.kind is UseKind.MOUNT]
    if mounts and is_system:
        # What the running system needs cannot be given up, so there is no next step.
        yield Problem("target-mounted", f"{disk.node}: is mounted ({_list_uses(mounts)})")
    elif mounts:
        yield Problem(
            "target-mounted",
            f"{disk.node}: is mounted ({_list_uses(mounts)})",
            f"Add --unmount, or unmount it first: umount {_list_points(mounts)}",
            lifted_by="--unmount",
        )


def _find_held(disk: Disk, uses: tuple[Use, ...], *, is_system: bool) -> Iterator[Problem]:
    swaps = [use for use in uses if use.kind is UseKind.SWAP]
    holders = [use for use in uses if use.kind not in {UseKind.MOUNT, UseKind.SWAP}]
    if swaps:
        # --unmount leaves it alone: what is paged out there may not fit into memory.
        yield Problem(
            "target-swap",
            f"{disk.node}: is used as swap ({_list_uses(swaps)})",
            f"Release it first: swapoff {_quote(use.detail for use in swaps)}",
        )
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


def _list_points(mounts: Iterable[Use]) -> str:
    # Mounts below others come first, or the upper ones would be busy.
    return _quote(sorted({use.detail for use in mounts}, reverse=True))


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


def assess_all(disks: Iterable[Disk], kernel: Kernel = RUNNING_KERNEL) -> list[Assessment]:
    """Each of ``disks`` judged by itself.

    Raises:
        TargetRefusedError: the kernel does not tell what is in use.
    """
    usage = Usage(kernel)
    return [assess(disk, kernel=kernel, usage=usage) for disk in disks]
