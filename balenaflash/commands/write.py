"""Write an image to targets: find and assess them, plan, write, and leave each in good order.

The order is `prepare_write`, then whatever question is to be asked, then `PreparedWrite.run`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from balenaflash.balena.image import BalenaImage
from balenaflash.commands.card_records import drop_record
from balenaflash.commands.wanted import ImageRequest, WantedImage, open_wanted
from balenaflash.durable import FileType, find_type, is_same_file
from balenaflash.errors import (
    BalenaflashError,
    ImageError,
    InterruptedWriteError,
    Problem,
    TargetRefusedError,
    refusal,
)
from balenaflash.flashing.disk_end import plan_gpt_move
from balenaflash.flashing.flash import FlashOptions, Outcome, Target, flash
from balenaflash.flashing.plan import Tally, WritePlan, plan_write, tally
from balenaflash.formats.fat.fsck import MARKED, is_marked
from balenaflash.formats.fat.layout import read_layout
from balenaflash.formats.fat.table import FatTable
from balenaflash.formats.fat.window import Window
from balenaflash.progress import Progress, Stop
from balenaflash.source.base import Source
from balenaflash.source.layers import Patch
from balenaflash.source.location import ImageLocation, find_image_path, output_mode
from balenaflash.source.undo_record import forget_record, require_whole
from balenaflash.targets.after_writing import Ending, end
from balenaflash.targets.disk_names import TargetName, find_named
from balenaflash.targets.file import create_file, open_file
from balenaflash.targets.medium import Medium
from balenaflash.targets.open_disk import open_disk
from balenaflash.targets.safety import (
    NO_PERMISSIONS,
    Assessment,
    Permissions,
    assess,
    require_writable,
)
from balenaflash.targets.unmount import unmount_all
from balenaflash.units import Extent

_DEVICES = Path("/dev")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a tmpfs for files, shm_overview(7)


@dataclass(frozen=True, slots=True)
class DiskDestination:
    """A block device that was found and may be written."""

    assessment: Assessment
    gpt_move: tuple[Patch, ...] = ()
    """What moves the backup GPT of the image to the end of the disk."""

    @property
    def name(self) -> str:
        """Its node."""
        return str(self.assessment.disk.node)


@dataclass(frozen=True, slots=True)
class FileDestination:
    """A regular file, there or to be created."""

    path: Path
    overwrite: bool
    mode: int
    """Who may read and write it, before the umask."""

    @property
    def name(self) -> str:
        """Its path as the user gave it."""
        return str(self.path)


Destination = DiskDestination | FileDestination


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """An image, the targets it is to be written to, and how."""

    image: ImageRequest
    targets: Sequence[TargetName]
    permissions: Permissions = NO_PERMISSIONS
    overwrite: bool = False
    """Allow a target that is an existing file."""

    write_all: bool = False
    """Write also what is free in the filesystems of the image, as is always done to files."""

    fix_gpt: bool = False
    """Move the backup GPT to the end of a disk that is larger than the image."""

    options: FlashOptions = field(default_factory=FlashOptions)
    eject: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of one target."""

    outcome: Outcome
    ending: Ending | None
    """The state a disk was left in; ``None`` for a file and for a target that failed."""


@dataclass(frozen=True, slots=True)
class PreparedWrite:
    """An open image, and targets that may be written with it; nothing was written yet."""

    request: WriteRequest
    image: WantedImage
    plan: WritePlan
    destinations: tuple[Destination, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """All warnings about the image; complete once the image has been read."""
        return (*self.image.warnings, *self.plan.warnings)

    def count(self, progress: Progress) -> Sequence[Tally]:
        """Read the image and count what a write would do, by partition."""
        return tally(self.image.edited.source, self.plan, progress)

    def unmount(self) -> Iterator[str]:
        """Unmount what the request allows to be unmounted; yields each mount point after that.

        Raises:
            ImageError: the image changed while a question was asked.
            TargetRefusedError: something stays mounted.
        """
        self.image.opened.require_unchanged()
        for each in self.destinations:
            if isinstance(each, DiskDestination) and each.assessment.mounts:
                yield from unmount_all(each.assessment.disk)

    def run(
        self,
        progress: Sequence[Progress],
        stop: Stop,
        finished: Callable[[int, Done], None] = lambda _number, _done: None,
    ) -> list[Done]:
        """Write the image to every target, read it back, and leave each target when it is done.

        ``progress`` has one for each target. ``finished`` is called with the number of a target
        as soon as it is done, from any thread.

        Raises:
            TargetRefusedError: a target is not what was confirmed any more. Nothing was written.
            InterruptedWriteError: the user left at once; what the targets hold is not known.
        """
        done: dict[int, Done] = {}

        def finish(number: int, outcome: Outcome) -> None:
            outcome = _close(opened[number], outcome)
            ending = leave(self.destinations[number], outcome, eject=self.request.eject)
            done[number] = Done(outcome, ending)
            finished(number, done[number])

        with _interruption_explained(self.destinations), ExitStack() as all_opened:
            opened = [all_opened.enter_context(ExitStack()) for _ in self.destinations]
            targets = [
                each.enter_context(open_destination(destination, self.plan.least_size, shown))
                for each, destination, shown in zip(
                    opened, self.destinations, progress, strict=True
                )
            ]
            outcomes = flash(
                self.image.edited.source,
                self.plan,
                targets,
                options=self.request.options,
                stop=stop,
                finished=finish,
            )
            for number, outcome in enumerate(outcomes):
                if number not in done:  # a user who has left does not wait for more
                    done[number] = Done(_close(opened[number], outcome), None)
        return [done[number] for number in range(len(self.destinations))]


@contextmanager
def prepare_write(request: WriteRequest) -> Iterator[PreparedWrite]:
    """Open the image, plan, and find and assess every target; the image is open in the block.

    Raises:
        ImageError, EditError, ConfigError: as `open_wanted`.
        TargetRefusedError: with every reason of each target at once. Nothing was written.
    """
    with open_wanted(request.image) as image:
        # A file is a copy, equal in every byte; what is free on a disk is not read by anything.
        is_copy = not any(map(is_device, request.targets))
        plan = plan_image(image.edited.image, write_all=request.write_all or is_copy)
        destinations = find_destinations(
            request.targets,
            image=request.image.location,
            plan=plan,
            permissions=request.permissions,
            overwrite=request.overwrite,
            mode=output_mode(request.image.location, adds_secrets=image.edited.adds_secrets),
        )
        if request.fix_gpt:
            destinations = plan_gpt_moves(destinations, image.edited.source, plan)
        yield PreparedWrite(request, image, plan, destinations)


@contextmanager
def _interruption_explained(destinations: Sequence[Destination]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        names = ", ".join(each.name for each in destinations)
        raise InterruptedWriteError(
            f"{names}: left before the work on it had ended; what it holds is not known",
            hint="Write it again from the start.",
        ) from interrupt


def _close(opened: ExitStack, outcome: Outcome) -> Outcome:
    """Close one target as its own outcome asks: only an unfinished file is removed."""
    try:
        with opened:
            if isinstance(outcome, BalenaflashError):
                raise outcome
    except BalenaflashError as error:
        return error
    return outcome


def leave(destination: Destination, outcome: Outcome, *, eject: bool) -> Ending | None:
    """Wait for the kernel and udev, and switch off a disk if asked to and if all went well."""
    if isinstance(outcome, BalenaflashError) or not isinstance(destination, DiskDestination):
        return None
    starts = [(each.number, each.extent.start) for each in outcome.partitions]
    return end(destination.assessment.disk, starts, eject=eject)


def plan_image(image: BalenaImage, *, write_all: bool = False) -> WritePlan:
    """The plan to write ``image``.

    Raises:
        ImageError: the image has no valid partition table or no boot partition, or is half-edited.
    """
    table, boot = image.table, image.boot
    marks = _check_marks(image.source, boot.partition.extent)
    warnings = (*table.warnings, *boot.warnings, *marks)
    return plan_write(image.source, table, warnings=warnings, write_all=write_all)


def _check_marks(source: Source, extent: Extent) -> tuple[str, ...]:
    """A warning if the FAT in ``extent`` was not unmounted cleanly.

    Raises:
        ImageError: the FAT is half-edited.
    """
    window = Window(source, extent)
    try:
        layout = read_layout(window)
        warnings = (MARKED,) if is_marked(window, layout, FatTable(window, layout)) else ()
    except ImageError:
        return ()  # written as it is; commands that read files in it report the damage
    require_whole(window.read_at(layout.state_offset, 1)[0], source.name)
    return warnings


def find_destinations(
    targets: Sequence[TargetName],
    *,
    image: ImageLocation,
    plan: WritePlan,
    permissions: Permissions,
    overwrite: bool,
    mode: int = 0o666,
) -> tuple[Destination, ...]:
    """What ``targets`` name, checked: whatever is returned may be written with ``image``.

    ``mode`` is that of a new file, before the umask.

    Raises:
        TargetRefusedError: with every reason of each at once. Nothing was opened for writing.
    """
    found: list[Destination] = []
    problems: list[Problem] = []
    for target in targets:
        try:
            found.append(
                _find(
                    target,
                    image=find_image_path(image),
                    plan=plan,
                    permissions=permissions,
                    overwrite=overwrite,
                    mode=mode,
                )
            )
        except TargetRefusedError as error:
            problems += error.problems
    problems += _find_repeated(found)
    if problems:
        raise TargetRefusedError(problems)
    return tuple(found)


def plan_gpt_moves(
    destinations: Sequence[Destination], source: Source, plan: WritePlan
) -> tuple[Destination, ...]:
    """``destinations``, each disk with what moves the backup GPT to its end.

    Raises:
        ImageError: as `move_backup`.
    """
    return tuple(
        replace(each, gpt_move=plan_gpt_move(source, plan.table, each.assessment.disk.size))
        if isinstance(each, DiskDestination)
        else each
        for each in destinations
    )


def _find_repeated(destinations: Sequence[Destination]) -> Iterator[Problem]:
    seen = dict[str, str]()
    for each in destinations:
        key = each.name if isinstance(each, DiskDestination) else str(each.path.resolve())
        if key in seen:
            yield Problem("target-repeated", f"{each.name}: is named twice", "Name each once.")
        seen[key] = each.name


def _find(
    target: TargetName,
    *,
    image: Path | None,
    plan: WritePlan,
    permissions: Permissions,
    overwrite: bool,
    mode: int,
) -> Destination:
    if isinstance(target, Path) and not is_device(target):
        if image is not None and is_same_file(target, image):
            message = f"{target}: is the image itself"
            raise refusal("target-is-image", message, "Name another file.")
        return FileDestination(target, overwrite, mode)
    assessment = assess(
        find_named(target),
        image_size=plan.least_size,
        image_path=image,
        image_sector_size=plan.table.sector_size,
        permissions=replace(permissions, virtual=isinstance(target, Path)),
    )
    require_writable(assessment)
    return DiskDestination(assessment)


@contextmanager
def open_destination(destination: Destination, size: int, progress: Progress) -> Iterator[Target]:
    """Open what was confirmed for writing ``size`` bytes, until the block ends.

    The undo record of an edit that was cut off is removed, since everything is overwritten.

    Raises:
        TargetRefusedError: it is not what was confirmed any more, or another program uses it.
    """
    match destination:
        case DiskDestination(assessment=assessment, gpt_move=gpt_move):
            with open_disk(assessment.disk) as disk:
                drop_record(assessment.disk)
                # Memory cards and USB sticks are sold with less in them than they claim.
                yield Target(disk, progress, gpt_move, may_be_fake=assessment.disk.is_external)
        case FileDestination(path=path, overwrite=overwrite, mode=mode):
            with create_file(path, size=size, overwrite=overwrite, mode=mode) as file:
                forget_record(path)
                yield Target(file, progress)


@contextmanager
def open_for_comparison(target: TargetName) -> Iterator[Medium]:
    """Open ``target``, a block device or a file, to compare what it holds.

    Raises:
        TargetRefusedError: it is not there, or may not be read.
    """
    if isinstance(target, Path) and not is_device(target):
        with open_file(target) as file:
            yield file
    else:
        with open_disk(find_named(target), for_writing=False) as disk:
            yield disk


def is_device(target: TargetName) -> bool:
    """Whether ``target`` is, or was meant to be, a device and no regular file."""
    if not isinstance(target, Path):
        return True
    # A node that is not there yet, or a misspelt one, must not become a file below /dev.
    if find_type(target) in {FileType.BLOCK_DEVICE, FileType.CHARACTER_DEVICE}:
        return True
    return target.parent.resolve().is_relative_to(
        _DEVICES
    ) and not target.parent.resolve().is_relative_to(_SHARED_MEMORY)
