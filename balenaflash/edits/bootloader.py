"""The flasher's swap of bootloader settings, made in an image.

A balenaOS flasher copies, as it writes the internal storage of a board, the settings that start
the board from there over those that the image came with (meta-balena, ``resin-init-flasher``).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from balenaflash.balena.image import ImageKind, find_kind
from balenaflash.edits.file_list import SIGNATURE_SUFFIX
from balenaflash.edits.files import FileChange, make_directories, put_file, read_file
from balenaflash.edits.paths import parent_of, volume_path
from balenaflash.errors import EditError
from balenaflash.formats.fat.names import fold
from balenaflash.formats.fat.volume import FatVolume

OLD_SUFFIX = ".old"
"""Added to the name of settings that are kept."""


@dataclass(frozen=True, slots=True)
class _Swap:
    """What a family of boards sets in its ``resin-init-flasher.conf``; paths are absolute."""

    source: str
    """``INTERNAL_DEVICE_BOOTLOADER_CONFIG``"""

    target: str
    """``INTERNAL_DEVICE_BOOTLOADER_CONFIG_PATH``"""

    legacy: str | None = None
    """``INTERNAL_DEVICE_BOOTLOADER_LEGACY_CONFIG_PATH``; used where the image has such a file."""


_GRUB = _Swap("/grub.cfg_internal", "/EFI/BOOT/grub.cfg", "/grub/grub.cfg")
"""Of balena-generic, balena-intel and balena-up-board; of these balena-intel alone has the legacy
path, and GRUB started by a BIOS reads it."""

_SWAPS = (
    _GRUB,
    _Swap("/grub.cfg_internal", "/boot/grub/grub.conf"),  # resin-intel-quark
    _Swap("/uEnv.txt_internal", "/uEnv.txt"),  # balena-beaglebone
)
"""All there are."""


@dataclass(frozen=True, slots=True)
class UseInternal:
    """Put the bootloader settings for internal storage in the place of the active ones."""

    source: str | None = None
    """Path of the former; ``None`` for those that the image has."""

    target: str | None = None
    """Path of the latter; ``None`` for where boards with such a source read them."""

    keep_old: bool = False
    """Whether what is replaced stays, under a name that ends in ``.old``."""

    def apply(self, volume: FatVolume) -> tuple[FileChange, ...]:
        """Make it so in ``volume``; the signature of a signed file goes with it."""
        return use_internal(volume, source=self.source, target=self.target, keep_old=self.keep_old)

    def describe(self) -> str:
        """What it does, in a few words."""
        source = "the internal settings" if self.source is None else volume_path(self.source)
        target = "their place" if self.target is None else volume_path(self.target)
        return f"put {source} to {target}"


def use_internal(
    volume: FatVolume,
    *,
    source: str | None = None,
    target: str | None = None,
    keep_old: bool = False,
) -> tuple[FileChange, ...]:
    """Copy ``source`` to ``target``, and ``source.sig`` to ``target.sig`` if there is one.

    Without them it is what the flasher of the image's board does. Directories that the target
    needs are made. With ``keep_old`` what is replaced stays as ``target.old``.

    Raises:
        EditError: the volume is the boot partition of a flasher, which would not start any more
            (``flasher-image``); or there are no such settings.
    """
    _refuse_flasher(volume)
    swap = _find_swap(volume, source, target)
    _require_source(volume, swap)
    changes = [*make_directories(volume, parent_of(swap.target))]
    for place in filter(None, (swap.target, swap.legacy)):
        if keep_old:
            changes += _keep(volume, swap.source, place)
        changes += _copy(volume, swap.source, place)
    return tuple(changes)


def _find_swap(volume: FatVolume, source: str | None, target: str | None) -> _Swap:
    source = None if source is None else volume_path(source)
    if target is not None:
        return _Swap(source or _known_swap(volume, None).source, volume_path(target))
    swap = _known_swap(volume, source)
    if swap.legacy is None or volume.find(swap.legacy) is None:
        return _Swap(swap.source, swap.target)
    return swap


def _keep(volume: FatVolume, source: str, target: str) -> Iterator[FileChange]:
    """Copy what ``source`` is about to replace at ``target``, if it is something else."""
    old = volume.find(target)
    if old is None or read_file(volume, source) == read_file(volume, target):
        return
    # A signature is found by the whole name of the file that it signs.
    yield from _copy(volume, old.path, old.path + OLD_SUFFIX)


def _copy(volume: FatVolume, source: str, target: str) -> Iterator[FileChange]:
    """Put ``source`` to ``target``, with its signature if it has one."""
    for suffix in ("", SIGNATURE_SUFFIX):
        if volume.find(source + suffix) is not None:
            yield put_file(volume, target + suffix, read_file(volume, source + suffix))


def _known_swap(volume: FatVolume, source: str | None) -> _Swap:
    """The swap of the boards that have ``source``, or of those that this image is for.

    Raises:
        EditError: no board is known to have such a source.
    """
    swaps = [swap for swap in _SWAPS if source is None or fold(source) == fold(swap.source)]
    if not swaps:
        raise EditError(
            f"{source}: it is not known where a board reads such settings",
            code="internal-config-unknown",
            hint="Say it: balenaflash boot use-internal --from FILE --to PATH IMAGE",
        )
    present = [swap for swap in swaps if volume.find(swap.source) is not None]
    # Two families have a file of the same name: the one whose target is there is this image's.
    in_use = [swap for swap in present if volume.find(swap.target) is not None]
    return next(iter((*in_use, *present, *swaps)))


def _refuse_flasher(volume: FatVolume) -> None:
    oddities: list[str] = []
    if find_kind(volume, oddities) is not ImageKind.FLASHER and not oddities:
        return
    raise EditError(
        "this is a flasher image: its own grub.cfg starts flash-rootA, but the internal one looks "
        "for resin-rootA, which a flasher does not have; the stick would not boot any more",
        code="flasher-image",
        hint="Make the change in the image it carries: balenaflash unwrap IMAGE OUT",
    )


def _require_source(volume: FatVolume, swap: _Swap) -> None:
    if volume.find(swap.source) is not None:
        return
    if volume.find(swap.target) is not None:
        hint = (
            f"It may need none: images such as generic-amd64's have the internal settings in "
            f"{swap.target} already; see balenaflash boot cat IMAGE {swap.target}"
        )
    else:
        hint = "Boards that do not start with GRUB have none; see balenaflash boot ls -R IMAGE"
    raise EditError(
        f"{swap.source}: this image has no such bootloader settings",
        code="internal-config-missing",
        hint=hint,
    )
