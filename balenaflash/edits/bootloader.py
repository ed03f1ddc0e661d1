"""The edit that starts an image from internal storage: its other bootloader settings.

When a balenaOS flasher writes the internal storage of a board, it replaces the bootloader settings
of the image by those for internal storage (meta-balena, ``resin-init-flasher``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.balena.image import ImageKind, find_kind
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.files import (
    FileChange,
    make_directories,
    parent_of,
    put_file,
    read_file,
    volume_path,
)
from balenaflash.errors import EditError
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatVolume

_OLD_SUFFIX = ".old"  # of settings that are kept


@dataclass(frozen=True, slots=True)
class _Swap:
    """The paths in a board family's ``resin-init-flasher.conf``, made absolute."""

    source: str
    """``INTERNAL_DEVICE_BOOTLOADER_CONFIG``"""

    target: str
    """``INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH``"""

    legacy: str | None = None
    """``INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH``; used if the image has such a file."""


_SWAPS = (
    # balena-generic, balena-intel and balena-up-board. Only balena-intel has the legacy path, which
    # is read by a GRUB that a BIOS started.
    _Swap("/grub.cfg_internal", "/EFI/BOOT/grub.cfg", "/grub/grub.cfg"),
    _Swap("/grub.cfg_internal", "/boot/grub/grub.conf"),  # resin-intel-quark
    _Swap("/uEnv.txt_internal", "/uEnv.txt"),  # balena-beaglebone
)
"""The swaps of all board families."""


@dataclass(frozen=True, slots=True)
class UseInternal:
    """Replace the active bootloader settings by those for internal storage.

    Without paths the edit is what the flasher of the image's board does. Missing directories are
    created, and the signature of a signed file is copied with it.
    """

    source: str | None = None
    """Path of the settings for internal storage; ``None`` for those of the image."""

    target: str | None = None
    """Path of the active settings; ``None`` for the path that boards with such a source read."""

    keep_old: bool = False
    """Keep replaced settings under a name that ends in ``.old``."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        _refuse_flasher(volume)
        swap = self._find_swap(volume)
        _require_source(volume, swap)
        changes = [*make_directories(volume, parent_of(swap.target))]
        for place in filter(None, (swap.target, swap.legacy)):
            old = volume.find(place)
            if self.keep_old and old is not None and not _is_same(volume, swap.source, place):
                # The name of a signature is that of the signed file with a suffix.
                changes += _copy(volume, old.path, old.path + _OLD_SUFFIX)
            changes += _copy(volume, swap.source, place)
        return tuple(changes)

    def describe(self) -> str:
        source = "the internal settings" if self.source is None else volume_path(self.source)
        target = "their place" if self.target is None else volume_path(self.target)
        return f"put {source} to {target}"

    def _find_swap(self, volume: FatVolume) -> _Swap:
        source = None if self.source is None else volume_path(self.source)
        if self.target is not None:
            return _Swap(source or _known_swap(volume, None).source, volume_path(self.target))
        swap = _known_swap(volume, source)
        if swap.legacy is None or volume.find(swap.legacy) is None:
            return _Swap(swap.source, swap.target)
        return swap


def _is_same(volume: FatVolume, source: str, target: str) -> bool:
    return read_file(volume, source) == read_file(volume, target)


def _copy(volume: FatVolume, source: str, target: str) -> Iterator[FileChange]:
    """Copy ``source`` to ``target``, with its signature if it has one."""
    for suffix in ("", SIGNATURE_SUFFIX):
        if volume.find(source + suffix) is not None:
            yield put_file(volume, target + suffix, read_file(volume, source + suffix))


def _known_swap(volume: FatVolume, source: str | None) -> _Swap:
    """The swap of the boards with ``source``; ``None`` for the board of this image.

    Raises:
        EditError: no known board has such a source.
    """
    swaps = [swap for swap in _SWAPS if source is None or fold(source) == fold(swap.source)]
    if not swaps:
        raise EditError(
            f"{source}: it is not known where a board reads such settings",
            code="internal-config-unknown",
            hint="Name the path: balenaflash boot use-internal --from FILE --to PATH IMAGE",
        )
    present = [swap for swap in swaps if volume.find(swap.source) is not None]
    # Two families have a source of the same name: the target in the image decides.
    in_use = [swap for swap in present if volume.find(swap.target) is not None]
    return next(iter((*in_use, *present, *swaps)))


def _refuse_flasher(volume: FatVolume) -> None:
    contradictions: list[str] = []
    if find_kind(volume, contradictions) is not ImageKind.FLASHER and not contradictions:
        return
    raise EditError(
        "this is a flasher image: its own grub.cfg starts flash-rootA, but the internal one looks "
        "for resin-rootA, which a flasher does not have; the stick would not boot any more",
        code="flasher-image",
        hint="Make the change in the image inside it: balenaflash unwrap IMAGE OUT",
    )


def _require_source(volume: FatVolume, swap: _Swap) -> None:
    if volume.find(swap.source) is not None:
        return
    if volume.find(swap.target) is not None:
        hint = (
            f"It may not need any: images such as generic-amd64 have the internal settings in "
            f"{swap.target} already; see balenaflash boot cat IMAGE {swap.target}"
        )
    else:
        hint = "Boards without GRUB do not have any; see balenaflash boot ls -R IMAGE"
    raise EditError(
        f"{swap.source}: this image has no such bootloader settings",
        code="internal-config-missing",
        hint=hint,
    )
