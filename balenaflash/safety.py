"""Whether a disk may be written, and every reason why it may not."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from balenaflash.errors import Problem, TargetRefusedError
from balenaflash.extent import SECTOR_SIZE
from balenaflash.fitness import (
    DEFAULT_MAX_SIZE,
    find_built_in,
    find_sector_size,
    find_too_large,
    find_too_small,
    find_unwritable,
    find_virtual,
)
from balenaflash.target.discovery import Disk
from balenaflash.target.kernel import RUNNING_KERNEL, Kernel
from balenaflash.target.usage import (
    Usage,
    Use,
    UseKind,
    disks_under,
    is_backed_by,
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
