"""Every reason why a disk may not be written.

Each ``_refuse_...`` yields the reasons of one kind; `assess` collects them all, the gravest first.
"""

import grp
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.targets.disks import Disk
from balenaflash.targets.sysfs import RUNNING_KERNEL, Bus, Kernel
from balenaflash.targets.usage import Usage, Use, UseKind, disks_under, is_backed_by
from balenaflash.units import GIB, SECTOR_SIZE, format_size

DEFAULT_MAX_SIZE = 256 * GIB
"""Size in bytes of the largest disk that needs no option: cards and eMMCs are smaller, disks with
somebody's work are mostly larger."""

_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


@dataclass(frozen=True, slots=True)
class Permissions:
    """The refusals that the user has lifted; each is one option, and none lifts another."""

    internal: bool = False
    """Allow a disk that is built in, and any virtual device."""

    virtual: bool = False
    """Allow a virtual device, because the user named its node."""

    unmount: bool = False
    """Allow a mounted disk that the running system does not use: it is unmounted first."""

    max_size: int | None = DEFAULT_MAX_SIZE
    """Size in bytes of the largest disk to allow; ``None`` for any."""


NO_PERMISSIONS = Permissions()


@dataclass(frozen=True, slots=True)
class Assessment:
    """A disk, its uses, and every reason against writing it."""

    disk: Disk
    uses: tuple[Use, ...]
    problems: tuple[Problem, ...]
    """The gravest first."""

    @property
    def is_writable(self) -> bool:
        """True if there is no reason against writing it."""
        return not self.problems

    @property
    def mounts(self) -> tuple[Use, ...]:
        """The places it is mounted at; a writable disk must be unmounted there first."""
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
    """Collect every reason not to write the disk, without opening it.

    Without an image only the disk is judged. Exclusive use by another process is found only when
    the disk is opened. ``usage`` is what the machine's disks are used for; read anew by default.

    Raises:
        TargetRefusedError: the kernel does not report what is in use.
    """
    usage = usage or Usage(kernel)
    uses = usage.of(disk)
    system = usage.of_system(disk)
    unmount = permissions.unmount and not system
    problems = (
        *_refuse_system(disk, system),
        *(() if permissions.internal else _refuse_unknown_system(disk, usage)),
        *_refuse_image(disk, image_path, kernel),
        *(() if unmount else _refuse_mounts(disk, uses, is_system=bool(system))),
        *_refuse_swap(disk, uses),
        *_refuse_held(disk, uses, is_system=bool(system)),
        *(() if permissions.internal else _refuse_built_in(disk)),
        *(() if permissions.internal or permissions.virtual else _refuse_virtual(disk)),
        *refuse_unwritable(disk),
        *_refuse_too_small(disk, image_size),
        *_refuse_too_large(disk, permissions.max_size),
        *_refuse_sector_size(disk, image_sector_size),
    )
    return Assessment(disk, uses, problems)


def assess_all(disks: Iterable[Disk], kernel: Kernel = RUNNING_KERNEL) -> list[Assessment]:
    """Assess each of ``disks``, without an image.

    Raises:
        TargetRefusedError: the kernel does not report what is in use.
    """
    usage = Usage(kernel)
    return [assess(disk, kernel=kernel, usage=usage) for disk in disks]


def require_writable(assessment: Assessment) -> None:
    """Return if the disk may be written.

    Raises:
        TargetRefusedError: it may not; with every reason.
    """
    if assessment.problems:
        raise TargetRefusedError(assessment.problems)


def _refuse_system(disk: Disk, system: tuple[str, ...]) -> Iterator[Problem]:
    if system:
        yield Problem(
            "target-system-disk",
            f"{disk.node}: holds the running system ({', '.join(system)})",
            "Choose another disk; no option lifts this refusal.",
        )


def _refuse_unknown_system(disk: Disk, usage: Usage) -> Iterator[Problem]:
    if usage.is_system_unknown:
        yield Problem(
            "target-maybe-system",
            f"{disk.node}: may hold the running system, whose disk was not found",
            "If it does not, add --allow-internal.",
            lifted_by="--allow-internal",
        )


def _refuse_image(disk: Disk, image_path: Path | None, kernel: Kernel) -> Iterator[Problem]:
    if image_path is None:
        return
    if is_backed_by(disk, image_path, kernel):
        yield Problem(
            "target-holds-image",
            f"{disk.node}: is a loop device backed by the image, {image_path}",
            "Detach the loop device, or name another disk.",
        )
    elif disk.device_number in disks_under(image_path, kernel):
        yield Problem(
            "target-holds-image",
            f"{disk.node}: holds the image itself, {image_path}",
            "Copy the image to another disk first.",
        )


def _refuse_mounts(disk: Disk, uses: tuple[Use, ...], *, is_system: bool) -> Iterator[Problem]:
    mounts = [use for use in uses if use.kind is UseKind.MOUNT]
    if not mounts:
        return
    message = f"{disk.node}: is mounted ({_list_uses(mounts)})"
    if is_system:
        # The running system cannot do without it, so there is no next step.
        yield Problem("target-mounted", message)
    else:
        # Mounts below others come first, or the upper ones would be busy.
        points = _quote(sorted({use.detail for use in mounts}, reverse=True))
        hint = f"Add --unmount, or unmount it first: umount {points}"
        yield Problem("target-mounted", message, hint, lifted_by="--unmount")


def _refuse_swap(disk: Disk, uses: tuple[Use, ...]) -> Iterator[Problem]:
    swaps = [use for use in uses if use.kind is UseKind.SWAP]
    if swaps:
        # --unmount does not lift it: the memory paged out there may not fit into RAM.
        yield Problem(
            "target-swap",
            f"{disk.node}: is used as swap ({_list_uses(swaps)})",
            f"Release it first: swapoff {_quote(use.detail for use in swaps)}",
        )


def _refuse_held(disk: Disk, uses: tuple[Use, ...], *, is_system: bool) -> Iterator[Problem]:
    holders = [use for use in uses if use.kind not in {UseKind.MOUNT, UseKind.SWAP}]
    if holders:
        message = f"{disk.node}: is used by other devices ({_list_uses(holders)})"
        yield Problem("target-held", message, None if is_system else _releasing(disk, holders))


def _list_uses(uses: Iterable[Use]) -> str:
    preposition = {UseKind.MOUNT: "at", UseKind.SWAP: "as"}
    return ", ".join(
        f"{use.device} {preposition.get(use.kind, f'by {use.kind}')} {use.detail}" for use in uses
    )


_RELEASE_COMMANDS = {
    UseKind.CRYPT: "cryptsetup close",
    UseKind.DEVICE_MAPPER: "dmsetup remove",
    UseKind.LOOP: "losetup --detach",
    UseKind.LVM: "dmsetup remove",  # one volume by the name that is shown, unlike vgchange
    UseKind.RAID: "mdadm --stop",
}


def _releasing(disk: Disk, holders: Iterable[Use]) -> str:
    commands = dict.fromkeys(
        f"{_RELEASE_COMMANDS[use.kind]} {shlex.quote(use.detail)}"
        for use in holders
        if use.kind in _RELEASE_COMMANDS
    )
    if not commands:
        return f"See what they are: lsblk {disk.node}"
    # The uppermost device is found last and must be released first.
    return f"Release it first: {'; '.join(reversed(commands))}"


def _quote(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _refuse_built_in(disk: Disk) -> Iterator[Problem]:
    if not (disk.is_external or disk.is_virtual):
        yield Problem(
            "target-internal",
            f"{disk.node}: is built into this machine ({disk.bus})",
            "If this is the right disk, add --allow-internal.",
            lifted_by="--allow-internal",
        )


def _refuse_virtual(disk: Disk) -> Iterator[Problem]:
    # It may be the disk of a virtual machine, which holds it open without a claim to it.
    if disk.is_virtual:
        yield Problem(
            "target-virtual",
            f"{disk.node}: is a virtual device, such as the disk of a virtual machine",
            f"If this is the right disk, name it by its node: {disk.node}",
            lifted_by="--allow-internal",
        )


def refuse_unwritable(disk: Disk) -> Iterator[Problem]:
    """Reasons why the disk cannot be written at all."""
    if disk.size == 0:
        yield Problem(
            "target-no-medium",
            f"{disk.node}: is empty",
            "Attach a file to it." if disk.is_virtual else "Insert a card.",
        )
    if disk.read_only:
        yield Problem("target-read-only", f"{disk.node}: is read-only", _unlocking(disk))
    if not os.access(disk.node, os.F_OK) or _is_another(disk):
        yield Problem(
            "target-missing",
            f"{disk.node}: is not there",
            "Plug it in again; in a container, pass the node to the container.",
        )
    elif not os.access(disk.node, os.R_OK | os.W_OK, effective_ids=True):
        yield _no_permission(disk)


def _is_another(disk: Disk) -> bool:
    """True if the node is that of another disk, as may happen in a container."""
    is_block_device = stat.S_ISBLK(disk.node.stat().st_mode)
    return is_block_device and not RUNNING_KERNEL.is_node_of(disk.node, disk.device_number)


def _unlocking(disk: Disk) -> str:
    match disk.bus:
        case Bus.SD:
            return "Slide the switch on the edge of the card, or of its adapter, away from LOCK."
        case Bus.USB:
            return (
                "Slide the switch on the edge of the card or its adapter away from LOCK, or the "
                "one on the stick. Without a switch, a worn-out card or stick stays read-only."
            )
        case Bus.LOOP:
            return f"Attach it again without --read-only: losetup --detach {disk.node}"
        case _:
            return f"If nothing else protects it, make it writable: blockdev --setrw {disk.node}"


def _no_permission(disk: Disk) -> Problem:
    status = disk.node.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)  # a number without a name, as often in a container
    join = ""
    if status.st_gid != 0 and status.st_mode & _GROUP_MAY == _GROUP_MAY:
        join = f"join the group {group}, "
    hint = (
        f"Run it as root (sudo balenaflash ...), {join}"
        "or install the udev rule (sudo balenaflash udev install)."
    )
    return Problem(
        "target-no-permission",
        f"{disk.node}: this user may not read and write it "
        f"({stat.filemode(status.st_mode)}, group {group})",
        hint,
    )


def _refuse_too_small(disk: Disk, image_size: int | None) -> Iterator[Problem]:
    if image_size is not None and 0 < disk.size < image_size:
        yield Problem(
            "target-too-small",
            f"{disk.node}: has {disk.size} bytes ({format_size(disk.size)}), "
            f"the image {image_size} ({format_size(image_size)})",
            f"Use a disk of at least {image_size} bytes.",
        )


def _refuse_too_large(disk: Disk, max_size: int | None) -> Iterator[Problem]:
    if max_size is not None and disk.size > max_size:
        yield Problem(
            "target-too-large",
            f"{disk.node}: has {disk.size} bytes ({format_size(disk.size)}), more than the "
            f"{format_size(max_size)} that is allowed for a target",
            f"If this is the right disk, add --max-size {-(-disk.size // GIB)}G.",
            lifted_by="--max-size",
        )


def _refuse_sector_size(disk: Disk, image_sector_size: int) -> Iterator[Problem]:
    found = disk.logical_sector_size
    if found != image_sector_size:
        yield Problem(
            "target-sector-size",
            f"{disk.node}: has sectors of {found} bytes, but the tables of the image count in "
            f"{image_sector_size}: on this disk no partition would be found",
            f"Choose a disk with sectors of {image_sector_size} bytes; the same disk may have them "
            "in another USB enclosure.",
        )
