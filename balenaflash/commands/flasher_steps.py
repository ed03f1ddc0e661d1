"""What a flasher does on its board, step by step, and what becomes of each in an image.

The steps and their order are those of meta-balena's ``resin-init-flasher`` (v8.0.2).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from balenaflash.balena.boards import Board, HookPlace
from balenaflash.balena.flasher import Flasher
from balenaflash.balena.settings import BootloaderImage
from balenaflash.edits.files import Edit, is_directory
from balenaflash.edits.installation import (
    InstallConfig,
    Installer,
    InstallFile,
    MergeDirectory,
    RemoveSecureBootPrograms,
    ReplaceDirectory,
    find_secure_boot_programs,
    is_file,
)
from balenaflash.edits.paths import parent_of, volume_path
from balenaflash.formats.fat.volume import FatVolume


class StepState(StrEnum):
    """What becomes of a step when the image is unwrapped."""

    DONE = "done-by-unwrap"
    NEEDS_BOARD = "needs-board"
    NOT_NEEDED = "not-needed"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the flasher."""

    code: str
    """Stable name, such as ``bootloader-config``."""

    action: str
    """What the flasher does on the board, a sentence."""

    state: StepState

    meaning: str | None = None
    """What that means for the board's booting, a sentence; ``None`` for nothing."""

    edit: Edit | None = field(default=None, repr=False)
    """What does it in the inner boot partition, where that is how it is done."""

    bootloader: BootloaderImage | None = None
    """What does it outside of the partitions, likewise."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the steps depend on."""

    flasher: Flasher
    installer: Installer
    board: Board | None
    """``None`` for one that is not known."""

    outer: FatVolume = field(repr=False)
    """The flasher's boot partition."""

    inner: FatVolume = field(repr=False)
    """That of the image it carries."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the disks that the flasher may write, as it would take them."""
        return self.installer.target_devices or self.flasher.settings.internal_devices


def list_steps(given: Circumstances) -> tuple[Step, ...]:
    """Every step, in the flasher's order."""
    return (
        *_security_steps(given),
        _image_step(given),
        *_bootloader_steps(given),
        *_directory_steps(given),
        *_config_file_steps(given),
        _secure_boot_programs_step(given),
        _config_json_step(given),
        _board_hook_step(given),
        *_efi_entry_steps(given),
    )


_LOCKED = "A board that is unwrapped this way runs unlocked, and its disk is not encrypted."


def _security_steps(given: Circumstances) -> Iterator[Step]:
    wanted = given.installer.wants_secure_boot
    state = StepState.NEEDS_BOARD if wanted else StepState.NOT_NEEDED
    meaning = _LOCKED if wanted else None
    yield Step(
        "secure-boot",
        "Enrols the keys of secure boot in the firmware, if config.json asks for it.",
        state,
        meaning,
    )
    yield Step(
        "verify-signature",
        "Verifies the signature of the image against the running kernel's keys, if it encrypts.",
        state,
    )
    yield Step(
        "disk-encryption",
        "Encrypts the partitions with a key that the board's TPM or processor seals, "
        "if config.json asks for it.",
        state,
        meaning,
    )


def _image_step(given: Circumstances) -> Step:
    names = ", ".join(given.devices) or "no disk, for its settings name none"
    if len(given.devices) > 1:
        names = f"the first that is there of {names}"
    name = given.flasher.image_name
    return Step("image", f"Writes {name} to the internal disk: {names}.", StepState.DONE)


def _bootloader_steps(given: Circumstances) -> Iterator[Step]:
    bootloaders = given.flasher.settings.bootloaders
    if not bootloaders:
        action = "Writes a boot loader outside of the partitions, if its settings name one."
        yield Step("bootloader", action, StepState.NOT_NEEDED)
    for number, each in enumerate(bootloaders):
        code = f"bootloader-{number + 1}" if number else "bootloader"
        action = f"Writes the boot loader {each.file} to {each.device}, at byte {each.offset}."
        if _is_internal_disk(each.device, given.devices):
            yield Step(code, action, StepState.DONE, bootloader=each)
        else:
            meaning = (
                f"The board starts by what is in {each.device}, which only the board itself "
                "reaches: if that is empty or too old, this image does not start."
            )
            yield Step(code, action, StepState.NEEDS_BOARD, meaning)


_NO_DISK = re.compile(r"mtd|nand|.*boot\d+$|.*\dp\d+$")
"""Flash chips, the eMMC's own boot partitions, and partitions."""


def _is_internal_disk(device: str, names: tuple[str, ...]) -> bool:
    """Whether ``device`` is the disk that the image goes to, which ``names`` tell."""
    if _NO_DISK.match(device):
        return False
    return any(fnmatchcase(device, name) for name in names)


def _directory_steps(given: Circumstances) -> Iterator[Step]:
    settings = given.flasher.settings
    yield _directory_step(
        given, "splash", settings.splash, "Adds the files of {} to the inner one.", MergeDirectory
    )
    text = "Puts {} in the place of the inner one, if it has it."
    for code, directory in (
        ("system-connections", settings.connections),
        ("dispatcher", settings.dispatcher),
        ("system-proxy", settings.proxy),
    ):
        yield _directory_step(given, code, directory, text, ReplaceDirectory)


def _directory_step(
    given: Circumstances,
    code: str,
    directory: str | None,
    text: str,
    make: type[MergeDirectory | ReplaceDirectory],
) -> Step:
    action = text.format(f"{directory}/" if directory else code)
    if directory is None or not is_directory(given.outer, volume_path(directory)):
        return Step(code, action, StepState.NOT_NEEDED)
    return Step(code, action, StepState.DONE, edit=make(given.outer, directory))


def _config_file_steps(given: Circumstances) -> Iterator[Step]:
    settings = given.flasher.settings
    file, path = settings.bootloader_config, settings.bootloader_config_path
    yield _file_step(
        given, "bootloader-config", file, path, "bootloader's configuration", signed=True
    )
    legacy = settings.bootloader_legacy_path
    yield _file_step(
        given, "bootloader-config-legacy", file, legacy, "bootloader's configuration once more"
    )
    environment = settings.bootloader_environment
    root = f"/{environment.rpartition('/')[2]}" if environment else None
    yield _file_step(given, "bootloader-environment", environment, root, "boot environment")


def _file_step(
    given: Circumstances,
    code: str,
    file: str | None,
    target: str | None,
    what: str,
    *,
    signed: bool = False,
) -> Step:
    if file is None or target is None:
        action = f"Copies the {what}, if its settings name one."
        return Step(code, action, StepState.NOT_NEEDED)
    action = f"Copies the {what}, {file}, to {target}, if it has it."
    if not is_file(given.outer, file):
        return Step(code, action, StepState.NOT_NEEDED)
    edit = InstallFile(given.outer, file, target, signed=signed)
    return Step(code, action, StepState.DONE, edit=edit)


def _secure_boot_programs_step(given: Circumstances) -> Step:
    code = "secure-boot-programs"
    action = "Removes the boot programs for secure boot, *.efi.secureboot, if it does not encrypt."
    path = given.flasher.settings.bootloader_config_path
    directory = None if path is None else parent_of(volume_path(path))
    if directory is None or not find_secure_boot_programs(given.inner, directory):
        return Step(code, action, StepState.NOT_NEEDED)
    return Step(code, action, StepState.DONE, edit=RemoveSecureBootPrograms(directory))


def _config_json_step(given: Circumstances) -> Step:
    action = "Copies config.json, without its key installer."
    return Step("config-json", action, StepState.DONE, edit=InstallConfig(given.outer))


_HOOK_MEANINGS = {
    HookPlace.EMMC_BOOT: (
        "The board's first boot loader lies in a boot partition of the eMMC itself, which is not "
        "part of the disk: a board that has never run its flasher does not start this image."
    ),
    HookPlace.FLASH_CHIP: (
        "The board starts by a boot loader in a flash chip of its own: if that is empty or too "
        "old, this image does not start."
    ),
    HookPlace.DISK: (
        "The boot loader is chosen and written by the board: without it this image does not start."
    ),
    HookPlace.FIRMWARE: (
        "The firmware gets no entry in its boot menu: it starts the disk only where it looks "
        "for /EFI/BOOT/BOOTX64.EFI by itself, or starts by the BIOS way."
    ),
}


def _board_hook_step(given: Circumstances) -> Step:
    code, hook = "board-hook", given.board.hook if given.board else None
    if not given.flasher.has_board_hook:
        action = "Runs a program of the board's own, which for this board does nothing."
        return Step(code, action, StepState.NOT_NEEDED)
    if given.board is None or given.board.hook_place is None:
        action = "Runs a program of the board's own; what it does is not known."
        meaning = "If it writes a boot loader, a board that has none does not start this image."
        return Step(code, action, StepState.NEEDS_BOARD, meaning)
    action = f"Runs a program of the board's own: {hook}."
    return Step(code, action, StepState.NEEDS_BOARD, _HOOK_MEANINGS[given.board.hook_place])


def _efi_entry_steps(given: Circumstances) -> Iterator[Step]:
    """Of signed builds for EFI boards; others leave it to the board's own program."""
    flasher = given.flasher
    if flasher.has_secure_boot_hooks and flasher.settings.bootloader_config_luks is not None:
        yield Step(
            "efi-entry",
            "Makes an entry balenaOS in the boot menu of the firmware.",
            StepState.NEEDS_BOARD,
            _HOOK_MEANINGS[HookPlace.FIRMWARE],
        )
