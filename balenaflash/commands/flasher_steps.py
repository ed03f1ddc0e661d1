"""The steps of a flasher on its board, and the same steps done in the image that it carries.

The steps and their order are those of meta-balena's ``resin-init-flasher`` (v8.0.2).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from balenaflash.balena.flasher_contents import Flasher, HookPlace, find_board, require_flasher
from balenaflash.balena.image import BalenaImage
from balenaflash.balena.settings import BootloaderImage
from balenaflash.commands.edit import Edited, open_steady
from balenaflash.edits.consequences import warn_of_low_space
from balenaflash.edits.files import Edit, is_directory, parent_of, read_file, volume_path
from balenaflash.edits.flasher_edits import (
    InstallConfig,
    InstallFile,
    MergeDirectory,
    RemoveSecureBootPrograms,
    ReplaceDirectory,
    find_secure_boot_programs,
    is_file,
    read_installer,
)
from balenaflash.errors import EditError
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.undo_record import require_whole


class StepState(StrEnum):
    """State of a step once the image is unwrapped."""

    DONE = "done-by-unwrap"
    NEEDS_BOARD = "needs-board"
    NOT_NEEDED = "not-needed"


@dataclass(frozen=True, slots=True)
class FlasherStep:
    """One step of the flasher."""

    code: str
    """Stable name, such as ``bootloader-config``."""

    action: str
    """Sentence: the flasher's action on the board."""

    state: StepState = StepState.NOT_NEEDED

    meaning: str | None = None
    """Sentence: the consequence for the board's booting; ``None`` if there is none."""

    edit: Edit | None = field(default=None, repr=False)
    """The same action in the inner boot partition, if it is one."""

    bootloader: BootloaderImage | None = None
    """The boot loader that is written outside of the partitions, if one is."""


class Unwrapping:
    """A flasher, and its steps on the board with the state of each."""

    def __init__(self, image: BalenaImage, flasher: Flasher) -> None:
        """Read what the steps of ``flasher``, which is in ``image``, depend on.

        Only the partition table and the directories of the boot partition of the inner image are
        read.

        Raises:
            ImageError: the inner image is not one of balenaOS layout.
            ConfigError: the flasher's config.json is missing or not valid.
        """
        self.image, self.flasher, self.inner = image, flasher, flasher.image
        self.installer = read_installer(image.files)
        self.slug = image.facts.slug
        """Device type of the flasher; ``None`` if it is unknown."""

        self.board = find_board(self.slug) if self.slug else None
        self.devices = self.installer.target_devices or flasher.settings.internal_devices
        """Names or shell patterns, by the board's kernel, of the disks it may write.

        It writes the first that is there."""

        version, about_version = image.os_version
        self.os_version = version.text if version else None
        self.warnings = (
            *image.table.warnings,
            *(f"{flasher.image_name}: {warning}" for warning in self.inner.table.warnings),
            *flasher.warnings,
            *about_version,
            *self.inner.boot.warnings,
        )
        self.steps = tuple(_list_steps(self))
        """Every step, in the flasher's order."""


def plan_unwrap(image: BalenaImage) -> Unwrapping:
    """The steps of the flasher ``image`` on its board.

    Raises:
        ImageError: it is not a flasher; or as `require_flasher`, `Unwrapping`.
        ConfigError: as `Unwrapping`.
    """
    _ = image.facts  # first, so that a stream is read from its start to its end
    return Unwrapping(image, require_flasher(image))


def unwrap(unwrapping: Unwrapping, *, ignore_secure_boot: bool, repair: bool) -> Edited:
    """The inner image with every step done that can be done without the board.

    The fingerprint in its boot partition stays as it is, as the flasher leaves it. The same
    flasher gives the same bytes whenever it is unwrapped: copied files get ``SOURCE_DATE_EPOCH``
    as their time or, without that, the newest one in the boot partition.

    Raises:
        EditError: config.json requests secure boot and ``ignore_secure_boot`` is not set
            (``secure-boot-requested``), or a step cannot be done.
        ImageError: the flasher or the inner image cannot be read.
    """
    inner, name = unwrapping.inner, unwrapping.flasher.image_name
    require_whole(unwrapping.image.files.edit_mark.before, name)
    require_whole(inner.files.edit_mark.before, name)
    if unwrapping.installer.wants_secure_boot and not ignore_secure_boot:
        raise EditError(
            f"{name}: config.json requests secure boot and disk encryption from the flasher, "
            "which only the board can set up",
            code="secure-boot-requested",
            hint="Start the flasher on the board; or, to go without: --ignore-secure-boot",
        )
    bootloaders = [each.bootloader for each in unwrapping.steps if each.bootloader is not None]
    patches = [_read_bootloader(unwrapping, each) for each in bootloaders]
    if patches:
        source = inner.source
        for patch in patches:  # one over the other, as the flasher writes them
            source = Overlay(source, [patch])
        inner = BalenaImage(source)
    volume = open_steady(inner, repair=repair)
    edits = [each.edit for each in unwrapping.steps if each.edit is not None]
    changes = tuple(change for edit in edits for change in edit.apply(volume))
    return Edited(
        inner.with_boot_changes(volume.changes()),
        changes,
        volume.repairs,
        warnings=(
            *unwrapping.warnings,
            *volume.problems(),
            *(warning for change in changes for warning in change.warnings),
            *warn_of_low_space(volume),
        ),
    )


def _read_bootloader(unwrapping: Unwrapping, bootloader: BootloaderImage) -> Patch:
    files, flasher = unwrapping.image.files, unwrapping.flasher
    if not is_file(files, bootloader.file):
        raise EditError(
            f"{bootloader.file}: is missing in the flasher's boot partition, "
            f"and is to be written to {bootloader.device}",
            code="bootloader-missing",
        )
    data = read_file(files, bootloader.file)
    end, size = bootloader.offset + len(data), flasher.image.source.size
    if not data or (size is not None and end > size):
        raise EditError(
            f"{bootloader.file}: these {len(data)} bytes do not fit into "
            f"{flasher.image_name} at byte {bootloader.offset}",
            code="bootloader-out-of-range",
        )
    return Patch(bootloader.offset, data)


def _list_steps(given: Unwrapping) -> Iterator[FlasherStep]:
    yield from _security_steps(given)
    yield _image_step(given)
    yield from _bootloader_steps(given)
    yield from _directory_steps(given)
    yield from _config_file_steps(given)
    yield _secure_boot_programs_step(given)
    yield FlasherStep(
        "config-json",
        "Copies config.json, without its key installer.",
        StepState.DONE,
        edit=InstallConfig(given.image.files),
    )
    yield _board_hook_step(given)
    if given.flasher.has_secure_boot_hooks and given.flasher.settings.bootloader_config_luks:
        # Only signed builds for EFI boards; others leave it to the board's own program.
        yield FlasherStep(
            "efi-entry",
            "Makes an entry balenaOS in the boot menu of the firmware.",
            StepState.NEEDS_BOARD,
            _HOOK_MEANINGS[HookPlace.FIRMWARE],
        )


def _security_steps(given: Unwrapping) -> Iterator[FlasherStep]:
    wanted = given.installer.wants_secure_boot
    state = StepState.NEEDS_BOARD if wanted else StepState.NOT_NEEDED
    locked = "A board with this image runs unlocked, and its disk is not encrypted."
    meaning = locked if wanted else None
    yield FlasherStep(
        "secure-boot",
        "Enrols the keys of secure boot in the firmware, if config.json requests it.",
        state,
        meaning,
    )
    yield FlasherStep(
        "verify-signature",
        "Verifies the signature of the image against the running kernel's keys, if it encrypts.",
        state,
    )
    yield FlasherStep(
        "disk-encryption",
        "Encrypts the partitions with a key that the board's TPM or processor seals, "
        "if config.json requests it.",
        state,
        meaning,
    )


def _image_step(given: Unwrapping) -> FlasherStep:
    names = ", ".join(given.devices) or "no disk, for its settings name none"
    if len(given.devices) > 1:
        names = f"the first that is there of {names}"
    name = given.flasher.image_name
    return FlasherStep("image", f"Writes {name} to the internal disk: {names}.", StepState.DONE)


def _bootloader_steps(given: Unwrapping) -> Iterator[FlasherStep]:
    bootloaders = given.flasher.settings.bootloaders
    if not bootloaders:
        action = "Writes a boot loader outside of the partitions, if its settings name one."
        yield FlasherStep("bootloader", action)
    for number, each in enumerate(bootloaders):
        code = f"bootloader-{number + 1}" if number else "bootloader"
        action = f"Writes the boot loader {each.file} to {each.device}, at byte {each.offset}."
        if _is_internal_disk(each.device, given.devices):
            yield FlasherStep(code, action, StepState.DONE, bootloader=each)
        else:
            meaning = (
                f"The board starts with the content of {each.device}, which only the board itself "
                "reaches: if that is empty or too old, this image does not start."
            )
            yield FlasherStep(code, action, StepState.NEEDS_BOARD, meaning)


_NOT_A_DISK = re.compile(r"mtd|nand|.*boot\d+$|.*\dp\d+$")
"""Flash chips, the eMMC's own boot partitions, and partitions."""


def _is_internal_disk(device: str, names: tuple[str, ...]) -> bool:
    """True if ``device`` is the disk the image goes to, by its ``names``."""
    if _NOT_A_DISK.match(device):
        return False
    return any(fnmatchcase(device, name) for name in names)


def _directory_steps(given: Unwrapping) -> Iterator[FlasherStep]:
    settings, outer = given.flasher.settings, given.image.files
    replace = "Replaces the inner {} by its own, if it has it."
    for code, directory, text, make in (
        ("splash", settings.splash, "Adds the files of {} to the inner one.", MergeDirectory),
        ("system-connections", settings.connections, replace, ReplaceDirectory),
        ("dispatcher", settings.dispatcher, replace, ReplaceDirectory),
        ("system-proxy", settings.proxy, replace, ReplaceDirectory),
    ):
        action = text.format(f"{directory}/" if directory else code)
        if directory is None or not is_directory(outer, volume_path(directory)):
            yield FlasherStep(code, action)
        else:
            yield FlasherStep(code, action, StepState.DONE, edit=make(outer, directory))


def _config_file_steps(given: Unwrapping) -> Iterator[FlasherStep]:
    settings, outer = given.flasher.settings, given.image.files
    file, environment = settings.bootloader_config, settings.bootloader_environment
    root = f"/{environment.rpartition('/')[2]}" if environment else None
    config = "bootloader's configuration"
    for code, what, origin, target in (
        ("bootloader-config", config, file, settings.bootloader_config_path),
        (
            "bootloader-config-legacy",
            f"{config} once more",
            file,
            settings.bootloader_legacy_path,
        ),
        ("bootloader-environment", "boot environment", environment, root),
    ):
        if origin is None or target is None:
            yield FlasherStep(code, f"Copies the {what}, if its settings name one.")
            continue
        action = f"Copies the {what}, {origin}, to {target}, if it has it."
        if is_file(outer, origin):
            edit = InstallFile(outer, origin, target, signed=code == "bootloader-config")
            yield FlasherStep(code, action, StepState.DONE, edit=edit)
        else:
            yield FlasherStep(code, action)


def _secure_boot_programs_step(given: Unwrapping) -> FlasherStep:
    code = "secure-boot-programs"
    action = "Removes the boot programs for secure boot, *.efi.secureboot, if it does not encrypt."
    path = given.flasher.settings.bootloader_config_path
    directory = None if path is None else parent_of(volume_path(path))
    if directory is None or not find_secure_boot_programs(given.inner.files, directory):
        return FlasherStep(code, action)
    return FlasherStep(code, action, StepState.DONE, edit=RemoveSecureBootPrograms(directory))


_HOOK_MEANINGS = {
    HookPlace.EMMC_BOOT: (
        "The board's first boot loader is in a boot partition of the eMMC itself, which is not "
        "part of the disk: a board that has never run its flasher does not start this image."
    ),
    HookPlace.FLASH_CHIP: (
        "The board starts with a boot loader in a flash chip of its own: if that is empty or too "
        "old, this image does not start."
    ),
    HookPlace.DISK: (
        "The board selects and writes the boot loader: without it this image does not start."
    ),
    HookPlace.FIRMWARE: (
        "The firmware gets no entry in its boot menu: it starts the disk only if it searches "
        "/EFI/BOOT/BOOTX64.EFI by itself, or if it starts disks as a BIOS does."
    ),
}


def _board_hook_step(given: Unwrapping) -> FlasherStep:
    code, board = "board-hook", given.board
    if not given.flasher.has_board_hook:
        action = "Runs a program of the board's own, which does nothing for this board."
        return FlasherStep(code, action)
    if board is None or board.hook_place is None:
        action = "Runs a program of the board's own; its actions are unknown."
        meaning = "If it writes a boot loader, a board that has none does not start this image."
        return FlasherStep(code, action, StepState.NEEDS_BOARD, meaning)
    action = f"Runs a program of the board's own: {board.hook}."
    return FlasherStep(code, action, StepState.NEEDS_BOARD, _HOOK_MEANINGS[board.hook_place])
