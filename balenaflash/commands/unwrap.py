"""Turn a flasher into the image that it installs, over a source or into a new file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from balenaflash.balena.boards import Board, find_board
from balenaflash.balena.flasher import Flasher, read_flasher
from balenaflash.balena.image import BootPartition, find_boot_partition, read_facts
from balenaflash.balena.settings import BootloaderImage
from balenaflash.commands.bmap import create as create_bmap
from balenaflash.commands.edit import EditedImage, lay_over
from balenaflash.commands.flasher_steps import Circumstances, Step, StepState, list_steps
from balenaflash.commands.image_file import output_mode, require_unused
from balenaflash.durable import is_same_file
from balenaflash.edits.consequences import warn_of_low_space
from balenaflash.edits.files import Edit, FileChange, read_file
from balenaflash.edits.installation import Installer, is_file, read_installer
from balenaflash.errors import EditError, ImageError, refusal
from balenaflash.flashing.save import SavedImage, save_image
from balenaflash.formats.fat.check import Fault
from balenaflash.formats.fat.volume import FatVolume
from balenaflash.formats.partitions.table import PartitionTable, read_table
from balenaflash.progress import Progress, Stop
from balenaflash.source.base import Source
from balenaflash.source.commit import ReadableImage
from balenaflash.source.container.compress import find_container
from balenaflash.source.layers import Overlay, Patch
from balenaflash.source.location import ImageLocation
from balenaflash.source.opening import open_for_reading
from balenaflash.source.sums import Check
from balenaflash.source.undo import require_whole
from balenaflash.targets.file import require_place


@dataclass(frozen=True, slots=True)
class InnerImage:
    """The image that a flasher carries, as it carries it."""

    source: Source = field(repr=False)
    """Readable as long as the flasher's own source is."""

    table: PartitionTable
    boot: BootPartition
    files: FatVolume = field(repr=False)
    """Of its boot partition, to look at."""


@dataclass(frozen=True, slots=True)
class UnwrapPlan:
    """What a flasher does on its board, and how it is done without one."""

    flasher: Flasher
    inner: InnerImage
    installer: Installer
    slug: str | None
    """Device type of the flasher; ``None`` where it does not tell."""

    board: Board | None
    """What is known of that; ``None`` for a board that is not."""

    steps: tuple[Step, ...]
    """All of the flasher's, in its order."""

    expected_devices: tuple[str, ...]
    """What the board calls the disk the image is for: names or shell patterns, the first one
    there counts."""

    warnings: tuple[str, ...]
    outer_files: FatVolume = field(repr=False)
    """Of the flasher's boot partition, to look at."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is done in the inner boot partition, in the flasher's order."""
        return tuple(step.edit for step in self.steps if step.edit is not None)


@dataclass(frozen=True, slots=True)
class UnwrappedImage:
    """The inner image as the flasher would leave it; nothing is written anywhere."""

    source: Source = field(repr=False)
    """What it holds; readable as long as the flasher's own source is."""

    changes: tuple[FileChange, ...]
    """In its boot partition, in the order they were made."""

    repairs: tuple[Fault, ...]
    """What was wrong with its boot partition, and was repaired before."""

    bootloaders: tuple[Patch, ...]
    """What was written outside of the partitions."""

    warnings: tuple[str, ...]


def plan_unwrap(source: Source, table: PartitionTable | None = None) -> UnwrapPlan:
    """What the flasher in ``source`` would do on its board, step by step.

    ``table`` is its partition table, where that was read before. Of the inner image no more is
    read than its partition table and its boot partition's directories.

    Raises:
        ImageError: it is no flasher (``not-a-flasher``), as `read_flasher`, or what it carries
            is not an image of balenaOS layout.
        ConfigError: its config.json is missing or not valid.
    """
    table = table or read_table(source)
    # In this order the image is read from its start to its end, which matters to a stream.
    boot = find_boot_partition(source, table)
    outer = boot.open(source)
    facts = read_facts(outer, boot)
    flasher = read_flasher(source, table)
    if flasher is None:
        raise ImageError(
            f"{source.name}: is no flasher: it has no partition flash-rootA",
            code="not-a-flasher",
            hint="A raw image needs no unwrapping; it is written as it is.",
        )
    board = find_board(facts.slug) if facts.slug else None
    installer = read_installer(outer)
    inner = _open_inner(flasher.image)
    given = Circumstances(flasher, installer, board, outer, inner.files)
    return UnwrapPlan(
        flasher=flasher,
        inner=inner,
        installer=installer,
        slug=facts.slug,
        board=board,
        steps=list_steps(given),
        expected_devices=given.devices,
        warnings=(
            *table.warnings,
            *(f"{flasher.image_name}: {warning}" for warning in inner.table.warnings),
            *flasher.warnings,
            *inner.boot.warnings,
        ),
        outer_files=outer,
    )


def unwrap(
    plan: UnwrapPlan, *, ignore_secure_boot: bool = False, repair: bool = True
) -> UnwrappedImage:
    """The inner image with every step done that can be done without the board.

    The fingerprint in its boot partition stays as it is, as the flasher leaves it. The same
    flasher gives the same bytes whenever it is unwrapped: what is copied gets
    ``SOURCE_DATE_EPOCH`` as its time or, without that, the newest one in the boot partition.

    Raises:
        EditError: config.json asks for secure boot and ``ignore_secure_boot`` is not set
            (``secure-boot-requested``), or a step cannot be done.
        ImageError: the flasher or the inner image cannot be read.
    """
    require_whole(plan.outer_files.edit_mark.before, plan.flasher.image_name)
    require_whole(plan.inner.files.edit_mark.before, plan.flasher.image_name)
    if plan.installer.wants_secure_boot and not ignore_secure_boot:
        raise EditError(
            f"{plan.flasher.image_name}: config.json asks the flasher for secure boot and "
            "an encrypted disk, which only the board can set up",
            code="secure-boot-requested",
            hint="Start the flasher on the board; or, to go without: --ignore-secure-boot",
        )
    bootloaders = tuple(_read_bootloaders(plan))
    source = plan.inner.source
    for patch in bootloaders:  # one over the other, as they would be written
        source = Overlay(source, [patch])
    inner = _open_inner(source) if bootloaders else plan.inner
    volume = inner.boot.open(source)
    volume.may_repair = repair
    if not os.environ.get("SOURCE_DATE_EPOCH"):
        times = (entry.modified for entry in volume.walk() if entry.modified is not None)
        volume.fixed_time = max(times, default=None)
    changes = tuple(change for each in plan.edits for change in each.apply(volume))
    patches = volume.changes()
    return UnwrappedImage(
        source=Overlay(source, patches) if patches else source,
        changes=changes,
        repairs=volume.repairs,
        bootloaders=bootloaders,
        warnings=(
            *plan.warnings,
            *volume.problems(),
            *(warning for change in changes for warning in change.warnings),
            *warn_of_low_space(volume),
        ),
    )


@dataclass(frozen=True, slots=True)
class UnwrappedEdit:
    """An open flasher as the image that it installs, with edits made in it."""

    plan: UnwrapPlan
    changes: tuple[FileChange, ...]
    """What the flasher's steps changed in the inner boot partition."""

    edited: EditedImage
    """The image, and what the edits changed after that; its warnings are those of all of it."""


def lay_over_unwrapped(
    opened: ReadableImage,
    edits: Sequence[Edit],
    *,
    ignore_secure_boot: bool,
    repair: bool = True,
) -> UnwrappedEdit:
    """The image that the flasher ``opened`` carries, as `unwrap` leaves it, with ``edits`` in it.

    Raises:
        ImageError, ConfigError, EditError: as `plan_unwrap`, `unwrap`, `lay_over`.
    """
    plan = plan_unwrap(opened.source)
    unwrapped = unwrap(plan, ignore_secure_boot=ignore_secure_boot, repair=repair)
    edited = lay_over(replace(opened, source=unwrapped.source), edits, repair=repair)
    # Both tell what is odd about the inner boot partition.
    warnings = tuple(dict.fromkeys((*edited.warnings, *unwrapped.warnings)))
    repairs = (*unwrapped.repairs, *edited.repairs)
    edited = replace(edited, repairs=repairs, warnings=warnings)
    return UnwrappedEdit(plan, unwrapped.changes, edited)


def steps_in(plan: UnwrapPlan, state: StepState) -> Sequence[Step]:
    """The steps that are in ``state``, in their order."""
    return [step for step in plan.steps if step.state is state]


def _open_inner(source: Source) -> InnerImage:
    table = read_table(source)
    boot = find_boot_partition(source, table)
    return InnerImage(source, table, boot, boot.open(source))


def _read_bootloaders(plan: UnwrapPlan) -> list[Patch]:
    bootloaders = (step.bootloader for step in plan.steps if step.bootloader is not None)
    return [_read_bootloader(plan, each) for each in bootloaders]


def _read_bootloader(plan: UnwrapPlan, bootloader: BootloaderImage) -> Patch:
    if not is_file(plan.outer_files, bootloader.file):
        raise EditError(
            f"{bootloader.file}: the flasher's boot partition lacks this boot loader, "
            f"which is to be written to {bootloader.device}",
            code="bootloader-missing",
        )
    data = read_file(plan.outer_files, bootloader.file)
    end, size = bootloader.offset + len(data), plan.inner.source.size
    if not data or (size is not None and end > size):
        raise EditError(
            f"{bootloader.file}: these {len(data)} bytes do not fit into "
            f"{plan.flasher.image_name} at byte {bootloader.offset}",
            code="bootloader-out-of-range",
        )
    return Patch(bootloader.offset, data)


@dataclass(frozen=True, slots=True)
class UnwrapReport:
    """A flasher that was unwrapped, or with a dry run would have been."""

    plan: UnwrapPlan
    """What it carries, and every step of it."""

    changes: tuple[FileChange, ...]
    """What its steps changed in the inner boot partition."""

    edits: tuple[FileChange, ...]
    """What the user's edits changed there after that."""

    repairs: tuple[Fault, ...]
    """What was wrong with the inner boot partition, and was repaired before."""

    saved: SavedImage | None
    """``None`` of a dry run."""

    bmap: Path | None
    """The block map beside the image; ``None`` where none was made."""

    warnings: tuple[str, ...]


def unwrap_to_file(
    flasher: ImageLocation,
    out: Path,
    edits: Sequence[Edit],
    *,
    member: str | None = None,
    sha256: str | None = None,
    checks: Sequence[Check] = (),
    overwrite: bool,
    ignore_secure_boot: bool,
    repair: bool = True,
    dry_run: bool,
    progress: Progress,
    stop: Stop,
) -> UnwrapReport:
    """Make ``out``, the image that ``flasher`` installs, with ``edits`` made in it.

    ``member``, ``sha256`` and ``checks`` are for `open_for_reading`.

    Raises:
        ImageError, ConfigError, EditError: as `plan_unwrap`, `unwrap`, `lay_over`.
        TargetRefusedError: ``out``, or the block map beside it, must not or cannot be made.
        WriteError: writing or the read-back failed; ``out`` is as it was.
    """
    bmap = _find_place(flasher, out, overwrite=overwrite)
    with open_for_reading(flasher, member=member, sha256=sha256, checks=checks) as opened:
        require_unused(flasher)
        unwrapped = lay_over_unwrapped(
            opened, edits, ignore_secure_boot=ignore_secure_boot, repair=repair
        )
        plan, changes, edited = unwrapped.plan, unwrapped.changes, unwrapped.edited
        warnings = edited.warnings
        if dry_run:
            if sha256 is not None or checks:
                edited.source.finish()
            return UnwrapReport(plan, changes, edited.changes, edited.repairs, None, None, warnings)
        saved = save_image(
            edited.source,
            out,
            overwrite=overwrite,
            mode=output_mode(flasher, adds_secrets=edited.adds_secrets),
            progress=progress,
            stop=stop,
        )
        warnings += opened.reading_warnings
    if bmap is not None:
        # An older one is of another image; until the new one is there, better none.
        bmap.unlink(missing_ok=True)
        warnings += create_bmap(out, bmap, progress=progress).warnings
    return UnwrapReport(plan, changes, edited.changes, edited.repairs, saved, bmap, warnings)


def _find_place(flasher: ImageLocation, out: Path, *, overwrite: bool) -> Path | None:
    """Make sure that ``out`` may be made; the place of its block map, if it is to have one."""
    if isinstance(flasher, Path) and is_same_file(flasher, out):
        message = f"{out}: is the flasher itself"
        raise refusal("target-is-image", message, "Name another file.")
    require_place(out, overwrite=overwrite)
    if find_container(out) is not None:
        return None
    bmap = out.with_name(f"{out.name}.bmap")
    require_place(bmap, overwrite=overwrite)
    return bmap
